"""Where the relay runs. They choose parts and translate; they decide nothing."""
