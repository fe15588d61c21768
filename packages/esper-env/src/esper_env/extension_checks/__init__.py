"""Checks of custom hosts and blueprints before they are used."""
