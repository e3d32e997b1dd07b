"""What is kept between runs: decoded images, and which files were verified."""
