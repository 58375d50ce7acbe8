"""The whole suite runs with the validation layer on (HAIAN_VALIDATE=1), set before anything of haian is imported."""
import os

os.environ.setdefault("HAIAN_VALIDATE", "1")
