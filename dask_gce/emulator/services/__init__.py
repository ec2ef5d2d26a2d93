"""Google's other APIs, as far as a cluster needs them: each module hands out its routes."""
