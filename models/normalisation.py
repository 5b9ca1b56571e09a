"""What pixels were normalised by, (x - mean) / std of RGB in [0, 1], where other people's weights were trained."""

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
KINETICS_MEAN, KINETICS_STD = (0.43216, 0.394666, 0.37645), (0.22803, 0.22145, 0.216989)
LITE_MEAN, LITE_STD = (127 / 255,) * 3, (128 / 255,) * 3  # EfficientNet-Lite, as TensorFlow trained it
HALF = (0.5, 0.5, 0.5)  # mean and std alike
