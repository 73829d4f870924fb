// This file lets go build take the package by its name; all else in it is tests.

package spire
