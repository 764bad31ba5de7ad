"""How headrace's demo model is made: corpus, training, export."""
