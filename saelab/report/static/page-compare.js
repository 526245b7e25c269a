/* Comparison: replaced below as its artifact's format settles. */
"use strict"
