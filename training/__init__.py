"""Makes what the project ships in `assets/weights`: here the input gate and the operating points."""
