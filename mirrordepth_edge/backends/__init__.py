"""What runs an artefact: one module a vendor, all behind the contract of `base`."""
