"""From a batch of images to maps, masks, perturbed images and scores."""
