"""From a trained student to files, numbers and pictures on a device."""
