"""Fixtures of security checks with real pods: those of the other tests with pods."""

from tests.e2e.conftest import home, lab, operator_process, with_crds, with_images

__all__ = ["home", "lab", "operator_process", "with_crds", "with_images"]
