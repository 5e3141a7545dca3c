"""Teachers: who gives teacher scores, and the store that keeps them."""
