"""Answers questions about tasks. SELECT only: nothing here can append or publish."""
