"""Whole clusters in virtual time, from one seed: does the lease keep its promises whatever happens?"""
