"""Finding the homography of a camera rig: from pairs that are not registered, from clicked points, from a target."""
