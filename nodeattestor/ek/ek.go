// Package ek decides whether a TPM's endorsement key (EK) is one that the operator
// trusts, and yields it as an Identity.
//
// An EK is vouched for by a certificate under a configured root, by its hash in the
// operator's inventory, or by both, as [Mode] says. The key of an [Identity] comes from
// the certificate that was verified (or is the one whose hash the inventory has), never
// from a second field beside it: an attacker who holds somebody's valid EK certificate
// must not get his own key challenged. What a certificate lacks (name algorithm,
// symmetric parameters, policy) comes from the TCG's default template for that key
// type, never from the agent.
//
// The package proves nothing about possession: only activation of a credential made for
// the Identity does (package ak).
package ek

import (
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"fmt"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
)

// Limits on what an agent may send.
const (
	MaxCertificates    = 8
	MaxCertificateSize = 8 << 10 // bytes of DER, each
	MaxPublicSize      = 1 << 10 // bytes of TPM2B_PUBLIC
	// Of the RSA keys of the certificates that come with the EK's. The largest that TPM makers and the TCG EK Credential Profile
	// use; with the largest that a certificate holds, a stranger would have the server verify for seconds.
	MaxChainKey      = 4096 // bits
	MaxChainExponent = 65537
)

// Mode says what must vouch for an EK.
type Mode int

// The modes. The zero value is the strictest.
const (
	Both        Mode = iota // a certificate under a root, and the hash in the inventory
	Certificate             // a certificate under a root
	Inventory               // the hash in the inventory
)

// ParseMode reads "both", "certificate" or "inventory".
func ParseMode(s string) (Mode, error) {
	for _, m := range []Mode{Both, Certificate, Inventory} {
		if m.String() == s {
			return m, nil
		}
	}
	return Both, fmt.Errorf("ek: mode %q is unknown; use certificate, inventory or both", s)
}

// String is the word that ParseMode reads.
func (m Mode) String() string {
	switch m {
	case Certificate:
		return "certificate"
	case Inventory:
		return "inventory"
	case Both:
		return "both"
	}
	return fmt.Sprintf("mode %d", int(m))
}

// Anchors is what the operator trusts.
type Anchors struct {
	Roots         []*x509.Certificate // TPM vendors' (or the operator's own) roots
	Intermediates []*x509.Certificate // help to build chains, trusted for nothing
	Inventory     Machines            // EK hash -> machine; may be nil in mode Certificate
	Mode          Mode
}

// Identity is an EK that the operator trusts. Only Verify makes one.
type Identity struct {
	key       crypto.PublicKey
	hash      nodeclaim.EKHash
	template  Template
	maker     maker
	node      string
	certified bool
}

// IsZero reports whether the identity never came from Verify.
func (i Identity) IsZero() bool { return i.key == nil }

// Key is the EK, an *rsa.PublicKey or *ecdsa.PublicKey.
func (i Identity) Key() crypto.PublicKey { return i.key }

// Hash identifies the EK: SHA-256 of the DER SubjectPublicKeyInfo, with algorithm
// rsaEncryption for every RSA key, so that a key has one hash whether its certificate
// says id-RSAESOAEP or it has none.
func (i Identity) Hash() nodeclaim.EKHash { return i.hash }

// Public is the EK's public area: the TCG default template of its key type, filled with
// the trusted key.
func (i Identity) Public() tpm2.TPMTPublic { return i.template.WithKey(i.key) }

// Manufacturer is the TPM vendor id of the certificate's subject alternative name
// ("id:53544D20"), "" unless Certified.
func (i Identity) Manufacturer() string { return i.maker.manufacturer }

// Model is the TPM model of the certificate's subject alternative name, in the vendor's words; "" unless Certified.
func (i Identity) Model() string { return i.maker.model }

// Version is the TPM version of the certificate's subject alternative name, mostly "id:" and 8 hex digits; "" unless
// Certified.
func (i Identity) Version() string { return i.maker.version }

// Node is the Kubernetes node that the inventory binds the EK to, "" when it has none.
func (i Identity) Node() string { return i.node }

// Certified reports whether a certificate under a configured root vouches for the EK.
func (i Identity) Certified() bool { return i.certified }

// Verify decides whether the EK that an agent presents is trusted at time now.
//
// certs are DER certificates, the EK's own first; the others may only help to build its
// chain. pub is the EK's TPM2B_PUBLIC, needed where no certificate is sent, and of which
// only the key is read. The agent controls both. The checks, in order:
//
//  1. limits, those of the keys in the others' certificates too; a strict parse of the leaf and of pub, which must hold the same key when
//     both are there (an attacker's key beside somebody's certificate is refused loudly);
//  2. key type: RSA 2048 or 3072 with exponent 65537, ECC P-256 or P-384;
//  3. modes Certificate and Both: the EK certificate profile and the chain (verifyCertificate);
//  4. modes Inventory and Both: the hash of that same key is in the inventory.
//
// Errors are *nodeclaim.Refusal with a check that starts with "ek.".
func Verify(certs [][]byte, pub []byte, a Anchors, now time.Time) (Identity, error) {
	chain, err := parseChain(certs)
	if err != nil {
		return Identity{}, err
	}
	key, err := presentedKey(chain, pub)
	if err != nil {
		return Identity{}, err
	}
	id := Identity{key: key}
	if id.template, err = templateFor(key); err != nil {
		return Identity{}, err
	}
	if id.hash, err = HashKey(key); err != nil {
		return Identity{}, refuse("key", "%v", err)
	}
	if now.IsZero() { // crypto/x509 would read the clock
		return Identity{}, refuse("time", "there is no time to judge the EK certificate's validity at")
	}
	if a.Mode != Inventory {
		if len(chain) == 0 {
			return Identity{}, refuse("certificate", "the agent sent no EK certificate and mode %s needs one; use mode inventory for TPMs without; keelson tpm info on the node says what its TPM holds", a.Mode)
		}
		if id.maker, err = verifyCertificate(chain, key, a, now); err != nil {
			return Identity{}, err
		}
		id.certified = true
	}
	machine, listed := a.Inventory[id.hash]
	if a.Mode != Certificate && !listed {
		return Identity{}, refuse("inventory", "EK %s is not in the inventory", id.hash)
	}
	id.node = machine.Node
	return id, nil
}

// presentedKey is the one key that the agent presents, unverified.
func presentedKey(chain []certificate, pub []byte) (crypto.PublicKey, error) {
	if len(pub) == 0 && len(chain) == 0 {
		return nil, refuse("missing", "the agent sent neither an EK certificate nor an EK public area")
	}
	if len(pub) == 0 {
		return chain[0].key, nil
	}
	fromArea, err := parsePublic(pub)
	if err != nil {
		return nil, err
	}
	if len(chain) == 0 {
		return fromArea, nil
	}
	if same, ok := chain[0].key.(interface{ Equal(crypto.PublicKey) bool }); !ok || !same.Equal(fromArea) {
		return nil, refuse("substitution", "the EK public area holds another key than the EK certificate")
	}
	return chain[0].key, nil
}

// HashKey is the EKHash of a key as documented at Identity.Hash.
func HashKey(key crypto.PublicKey) (nodeclaim.EKHash, error) {
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		return nodeclaim.EKHash{}, fmt.Errorf("ek: hash of the key: %w", err)
	}
	return sha256.Sum256(der), nil
}

func refuse(check, format string, args ...any) *nodeclaim.Refusal {
	return nodeclaim.Refuse("ek."+check, fmt.Sprintf(format, args...))
}
