"""Small models trained by this repository on generated scenes, so that everything runs with no download."""
