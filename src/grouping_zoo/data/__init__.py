"""Where training data come from: built-in scenes, image-text sources, captions, views, sampling."""
