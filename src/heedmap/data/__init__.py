"""Pictures: folders, named sets, the embedded digit scenes, decoding, augmentation, loaders, audit."""
