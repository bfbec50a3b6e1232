"""Django's MySQL backend with its credentials from a secret; Django looks for ``base.DatabaseWrapper`` here."""
