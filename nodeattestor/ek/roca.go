package ek

import "math/big"

// HasROCA tells whether an RSA modulus has the fingerprint of keys made by Infineon's RSALib (CVE-2017-15361): both primes are
// k*M + (65537^a mod M), M being a product of the first primes, so that the modulus lies, modulo each of these, in the group that
// 65537 generates. Such a key can be factored, and a TPM that it belongs to can be played by anybody. M holds all primes up to 167 for
// keys of 512 bits and more, and they are what is looked at: another key passes for one with a chance of less than 2^-27.
//
// Nemec, Sys, Svenda, Klinec, Matyas: "The Return of Coppersmith's Attack: Practical Factorization of Widely Used RSA Moduli", ACM CCS
// 2017, section 2.3; github.com/crocs-muni/roca.
func HasROCA(n *big.Int) bool {
	if n == nil || n.Sign() <= 0 {
		return false
	}
	for p, in := range rocaGroups {
		if !in[new(big.Int).Mod(n, big.NewInt(int64(p))).Int64()] {
			return false
		}
	}
	return true
}

// rocaGroups are, for the odd primes up to 167, the residues that powers of 65537 have.
var rocaGroups = func() map[int][]bool {
	out := map[int][]bool{}
	for p := 3; p <= 167; p += 2 {
		if !big.NewInt(int64(p)).ProbablyPrime(0) { // exact for numbers this small
			continue
		}
		out[p] = make([]bool, p)
		for x := 1; !out[p][x]; x = x * 65537 % p {
			out[p][x] = true
		}
	}
	return out
}()
