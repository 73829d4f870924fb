package image

import (
	"bytes"
	"cmp"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"

	"github.com/sigstore/sigstore/pkg/cryptoutils"
	"github.com/sigstore/sigstore/pkg/signature"

	"github.com/keelson-project/keelson/workloadattestor/workloadclaim"
)

// Verifier is a named rule for accepting images; make one with NewKeyVerifier or NewDigestVerifier. Its name becomes
// the selector signed-by:<name>.
type Verifier interface {
	// Name is the verifier's name, a DNS label.
	Name() string
	// accept tells whether the rule accepts a content; nil means yes.
	accept(c content, signatures []signed) error
	// needsSignatures tells whether accept looks at signatures.
	needsSignatures() bool
}

// keyVerifier accepts images with a cosign signature by one of its keys.
type keyVerifier struct {
	name string
	keys []signature.Verifier
}

// maxKeys bounds the keys of one verifier: a current one and those of a roll-over.
const maxKeys = 16

// NewKeyVerifier makes a verifier from PEM blocks "PUBLIC KEY" (RFC 5280 SubjectPublicKeyInfo): ECDSA P-256, P-384 or
// P-521, RSA of 2048 to 16384 bits (PKCS #1 v1.5), or Ed25519. Signatures are over SHA-256, as cosign makes them.
// Several keys serve a roll-over: any of them may have signed.
func NewKeyVerifier(name string, publicKeys []byte) (Verifier, error) {
	if _, err := workloadclaim.NewSelector(workloadclaim.KindSignedBy, name); err != nil {
		return nil, fmt.Errorf("image: verifier's name: %w", err)
	}
	v := &keyVerifier{name: name}
	rest := publicKeys
	for {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		key, err := parseKey(block)
		if err != nil {
			return nil, fmt.Errorf("image: verifier %s: key %d: %w", name, len(v.keys)+1, err)
		}
		if v.keys = append(v.keys, key); len(v.keys) > maxKeys {
			return nil, fmt.Errorf("image: verifier %s: more than %d keys", name, maxKeys)
		}
	}
	if len(v.keys) == 0 {
		return nil, fmt.Errorf("image: verifier %s: no PEM block \"PUBLIC KEY\"", name)
	}
	if len(bytes.TrimSpace(rest)) > 0 {
		return nil, fmt.Errorf("image: verifier %s: text after key %d that is not PEM", name, len(v.keys))
	}
	return v, nil
}

func parseKey(block *pem.Block) (signature.Verifier, error) {
	if block.Type != string(cryptoutils.PublicKeyPEMType) {
		return nil, fmt.Errorf("PEM block is %s, want %q", short(block.Type), cryptoutils.PublicKeyPEMType)
	}
	pub, err := cryptoutils.UnmarshalPEMToPublicKey(pem.EncodeToMemory(block))
	if err != nil {
		return nil, err
	}
	if err := checkStrength(pub); err != nil {
		return nil, err
	}
	return signature.LoadVerifier(pub, crypto.SHA256)
}

func checkStrength(pub crypto.PublicKey) error {
	switch key := pub.(type) {
	case *ecdsa.PublicKey:
		if bits := key.Curve.Params().BitSize; bits < 256 {
			return fmt.Errorf("ECDSA key of %d bits, want P-256, P-384 or P-521", bits)
		}
	case *rsa.PublicKey:
		if bits := key.N.BitLen(); bits < 2048 || bits > 16384 || key.E < 65537 {
			return fmt.Errorf("RSA key of %d bits with exponent %d, want 2048 to 16384 bits and 65537 or more", bits, key.E)
		}
	case ed25519.PublicKey:
	default:
		return fmt.Errorf("key of type %T, want ECDSA, RSA or Ed25519", pub)
	}
	return nil
}

func (v *keyVerifier) Name() string          { return v.name }
func (v *keyVerifier) needsSignatures() bool { return true }

// accept wants one signature that (1) verifies under one of the keys over the payload's bytes as received, and
// (2) whose payload names a manifest of the image, or an index that lists such a manifest. The tag at which the
// signature was found says nothing.
func (v *keyVerifier) accept(c content, signatures []signed) error {
	if len(signatures) == 0 {
		return errors.New("no signature found")
	}
	var reasons []error
	for _, s := range signatures {
		if !v.verifies(s) {
			continue
		}
		digest, err := parsePayload(s.payload)
		switch {
		case err != nil:
			reasons = append(reasons, err)
		case c.names(digest):
			return nil
		default:
			reasons = append(reasons, fmt.Errorf("signed by its key, but for another image, %s", digest))
		}
	}
	if len(reasons) > 0 {
		return errors.Join(reasons...)
	}
	return fmt.Errorf("none of %d signatures is by its key", len(signatures))
}

func (v *keyVerifier) verifies(s signed) bool {
	return slices.ContainsFunc(v.keys, func(key signature.Verifier) bool {
		return key.VerifySignature(bytes.NewReader(s.signature), bytes.NewReader(s.payload)) == nil
	})
}

// acceptAll asks v about everything that may run: one image that is not accepted may be the one that runs.
func acceptAll(v Verifier, b bound, signatures []signed) error {
	var refusals []error
	for _, c := range b.contents {
		err := v.accept(c, signatures)
		switch {
		case err == nil:
		case len(b.contents) == 1 && c.unread == "":
			return err
		case c.unread != "":
			refusals = append(refusals, fmt.Errorf("entry %s of the index may run and could not be read (%w): %w", short(c.unread), c.why, err))
		default:
			refusals = append(refusals, fmt.Errorf("manifest %s of the index may run: %w", c.manifests[0], err))
		}
		if len(refusals) == maxRefusals {
			break
		}
	}
	return errors.Join(refusals...)
}

// maxRefusals bounds the text about one image.
const maxRefusals = 4

// names tells whether digest is that of one of the manifests, or of an index that leads to one of them.
func (c content) names(digest string) bool {
	return slices.ContainsFunc(c.manifests, func(d workloadclaim.ManifestDigest) bool { return d.String() == digest }) ||
		slices.ContainsFunc(c.indexes, func(d workloadclaim.IndexDigest) bool { return d.String() == digest })
}

// subjects lists what a signature for the image may name. Those come first that vouch for most of it.
func (b bound) subjects() []string {
	count := map[string]int{}
	var out []string
	note := func(digest string) {
		if count[digest]++; count[digest] == 1 {
			out = append(out, digest)
		}
	}
	for _, c := range b.contents {
		for _, d := range c.manifests {
			note(d.String())
		}
		for _, d := range c.indexes {
			note(d.String())
		}
	}
	slices.SortStableFunc(out, func(x, y string) int { return cmp.Compare(count[y], count[x]) })
	return out
}

// DigestList is a plain list of accepted images, each digest under its kind.
type DigestList struct {
	Manifests []workloadclaim.ManifestDigest
	Indexes   []workloadclaim.IndexDigest
	Configs   []workloadclaim.ConfigDigest
}

type digestVerifier struct {
	name string
	list DigestList
}

// NewDigestVerifier makes a verifier that accepts the listed images and needs no signature.
func NewDigestVerifier(name string, list DigestList) (Verifier, error) {
	if _, err := workloadclaim.NewSelector(workloadclaim.KindSignedBy, name); err != nil {
		return nil, fmt.Errorf("image: verifier's name: %w", err)
	}
	if len(list.Manifests)+len(list.Indexes)+len(list.Configs) == 0 {
		return nil, fmt.Errorf("image: verifier %s lists no digest", name)
	}
	return &digestVerifier{name: name, list: list}, nil
}

func (v *digestVerifier) Name() string          { return v.name }
func (v *digestVerifier) needsSignatures() bool { return false }

func (v *digestVerifier) accept(c content, _ []signed) error {
	if !c.config.IsZero() && slices.Contains(v.list.Configs, c.config) {
		return nil
	}
	for _, m := range c.manifests {
		if slices.Contains(v.list.Manifests, m) {
			return nil
		}
	}
	for _, i := range c.indexes {
		if slices.Contains(v.list.Indexes, i) {
			return nil
		}
	}
	return errors.New("not in its list of digests")
}
