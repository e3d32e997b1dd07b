"""From files to predictions: sources, one reader of images, one Predictor."""
