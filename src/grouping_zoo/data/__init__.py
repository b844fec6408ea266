"""Data for training and evaluation: the registry of data sets, captions, input transform, augmentation, sampling."""
