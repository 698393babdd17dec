"""Pictures for people: overlays (overlay.py), heat maps (heat.py), key frames (story.py), HTML pages (others)."""
