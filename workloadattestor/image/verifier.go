package image

import (
	"bytes"
	"cmp"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"strings"

	in_toto "github.com/in-toto/attestation/go/v1"
	"github.com/sigstore/sigstore-go/pkg/bundle"
	"github.com/sigstore/sigstore-go/pkg/verify"
	"github.com/sigstore/sigstore/pkg/cryptoutils"
	"github.com/sigstore/sigstore/pkg/signature"

	"github.com/keelson-project/keelson/workloadattestor/workloadclaim"
)

// Verifier is a named rule for accepting images; make one with NewKeyVerifier, NewKeylessVerifier or NewDigestVerifier. Its
// name becomes the selector signed-by:<name>.
type Verifier interface {
	// Name is the verifier's name, a DNS label.
	Name() string
	// vouches returns what a signature vouches for by this rule. errOtherSigner means that the signature is none of this
	// rule's; every other error is about one that is.
	vouches(s signed) (vouch, error)
	// lists tells whether the rule accepts a content without any signature.
	lists(c content) bool
	// needsSignatures tells whether the rule looks at signatures.
	needsSignatures() bool
}

// vouch is what a verified signature says.
type vouch struct {
	digests []string // "sha256:<hex>" of manifests or indexes
	format  string
	signer  string // a key's or a certificate's subject, for people
}

// errOtherSigner means that a signature is not by whom a verifier trusts.
var errOtherSigner = errors.New("signed by another")

// keyVerifier accepts images with a signature by one of its keys.
type keyVerifier struct {
	name string
	keys []publicKey
}

// publicKey is a key with every way of signing that fits it.
type publicKey struct {
	fingerprint string // "sha256:<hex>" of its SubjectPublicKeyInfo
	verifiers   []signature.Verifier
	bundles     []*verify.Verifier
}

// maxKeys bounds the keys of one verifier: a current one and those of a roll-over.
const maxKeys = 16

// NewKeyVerifier makes a verifier from PEM blocks "PUBLIC KEY" (RFC 5280 SubjectPublicKeyInfo): ECDSA P-256, P-384 or
// P-521, RSA of 2048 to 16384 bits (PKCS #1 v1.5 or PSS), or Ed25519 (pure or pre-hashed). Signatures are over SHA-256, which
// cosign uses with every key, or over the hash that fits the key. Several keys serve a roll-over: any of them may have
// signed.
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

func parseKey(block *pem.Block) (publicKey, error) {
	if block.Type != string(cryptoutils.PublicKeyPEMType) {
		return publicKey{}, fmt.Errorf("PEM block is %s, want %q", short(block.Type), cryptoutils.PublicKeyPEMType)
	}
	pub, err := cryptoutils.UnmarshalPEMToPublicKey(pem.EncodeToMemory(block))
	if err != nil {
		return publicKey{}, err
	}
	if err := checkStrength(pub); err != nil {
		return publicKey{}, err
	}
	sum := sha256.Sum256(block.Bytes)
	key := publicKey{fingerprint: "sha256:" + hex.EncodeToString(sum[:])}
	if key.verifiers, err = verifiersOf(pub); err != nil {
		return publicKey{}, err
	}
	for _, v := range key.verifiers {
		b, err := keyBundles(v)
		if err != nil {
			return publicKey{}, err
		}
		key.bundles = append(key.bundles, b)
	}
	return key, nil
}

// verifiersOf lists the ways of signing that fit a key. Each is sound by itself, so a signature may be of any: the key's owner
// chose it, and no one else can make one.
func verifiersOf(pub crypto.PublicKey) ([]signature.Verifier, error) {
	var out []signature.Verifier
	var problems []error
	add := func(v signature.Verifier, err error) {
		out = append(out, v)
		problems = append(problems, err)
	}
	switch key := pub.(type) {
	case *ecdsa.PublicKey:
		add(signature.LoadECDSAVerifier(key, crypto.SHA256))
		switch bits := key.Curve.Params().BitSize; {
		case bits > 384:
			add(signature.LoadECDSAVerifier(key, crypto.SHA512))
		case bits > 256:
			add(signature.LoadECDSAVerifier(key, crypto.SHA384))
		}
	case *rsa.PublicKey:
		for _, hash := range []crypto.Hash{crypto.SHA256, crypto.SHA384, crypto.SHA512} {
			add(signature.LoadRSAPKCS1v15Verifier(key, hash))
			add(signature.LoadRSAPSSVerifier(key, hash, &rsa.PSSOptions{Hash: hash}))
		}
	case ed25519.PublicKey:
		add(signature.LoadED25519Verifier(key))
		add(signature.LoadED25519phVerifier(key))
	}
	return out, errors.Join(problems...)
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

func (v *keyVerifier) lists(content) bool { return false }

// vouches wants a signature that verifies under one of the keys over the signed bytes as received. Only then are they parsed.
// The place where the signature was found says nothing.
func (v *keyVerifier) vouches(s signed) (vouch, error) {
	for _, key := range v.keys {
		out := vouch{format: s.format(), signer: key.fingerprint}
		if s.bundle != nil {
			statement, ok := key.bundleStatement(s.bundle)
			if !ok {
				continue
			}
			var err error
			out.digests, err = statementSubjects(statement)
			return out, err
		}
		if key.verifies(s) {
			digest, err := parsePayload(s.payload)
			out.digests = []string{digest}
			return out, err
		}
	}
	return vouch{}, errOtherSigner
}

func (k publicKey) verifies(s signed) bool {
	return slices.ContainsFunc(k.verifiers, func(v signature.Verifier) bool {
		return v.VerifySignature(bytes.NewReader(s.signature), bytes.NewReader(s.payload)) == nil
	})
}

// bundleStatement returns the statement that a bundle signs by this key. It is nil if the bundle signs something else.
func (k publicKey) bundleStatement(b *bundle.Bundle) (*in_toto.Statement, bool) {
	for _, v := range k.bundles {
		result, err := v.Verify(b, verify.NewPolicy(verify.WithoutArtifactUnsafe(), verify.WithKey()))
		if err == nil {
			return result.Statement, true
		}
	}
	return nil, false
}

// verdict is what one verifier says of an image.
type verdict struct {
	refusal error // nil if it accepts the image
	by      []vouch
}

// judge asks v about everything that may run: one image that is not accepted may be the one that runs.
func judge(v Verifier, b bound, signatures []signed) verdict {
	by, reasons := vouchesOf(v, signatures)
	var out verdict
	var refusals []error
	for _, c := range b.contents {
		i := slices.IndexFunc(by, func(w vouch) bool { return slices.ContainsFunc(w.digests, c.names) })
		switch {
		case v.lists(c):
		case i >= 0:
			out.by = append(out.by, by[i])
		case len(b.contents) == 1 && c.unread == "":
			return verdict{refusal: why(v, by, reasons, len(signatures))}
		case c.unread != "":
			refusals = append(refusals, fmt.Errorf("entry %s of the index may run and could not be read (%w): %w",
				short(c.unread), c.why, why(v, by, reasons, len(signatures))))
		default:
			refusals = append(refusals, fmt.Errorf("manifest %s of the index may run: %w", c.manifests[0], why(v, by, reasons, len(signatures))))
		}
		if len(refusals) == maxRefusals {
			break
		}
	}
	if len(refusals) > 0 {
		return verdict{refusal: errors.Join(refusals...)}
	}
	return out
}

func vouchesOf(v Verifier, signatures []signed) (by []vouch, reasons []error) {
	if !v.needsSignatures() {
		return nil, nil
	}
	for _, s := range signatures {
		w, err := v.vouches(s)
		switch {
		case err == nil:
			by = append(by, w)
		case !errors.Is(err, errOtherSigner) && len(reasons) < maxRefusals:
			reasons = append(reasons, err)
		}
	}
	return by, reasons
}

// why says why none of the signatures vouches for an image.
func why(v Verifier, by []vouch, reasons []error, signatures int) error {
	reasons = slices.Clone(reasons)
	for _, w := range by[:min(len(by), maxRefusals)] {
		reasons = append(reasons, fmt.Errorf("signed by its key, but for another image, %s", strings.Join(w.digests[:min(len(w.digests), maxRefusals)], ", ")))
	}
	switch {
	case !v.needsSignatures():
		return errors.New("not in its list of digests")
	case signatures == 0:
		return errors.New("no signature found")
	case len(reasons) > 0:
		return errors.Join(reasons...)
	default:
		return fmt.Errorf("none of %d signatures is by its key", signatures)
	}
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

func (v *digestVerifier) vouches(signed) (vouch, error) { return vouch{}, errOtherSigner }

func (v *digestVerifier) lists(c content) bool {
	if !c.config.IsZero() && slices.Contains(v.list.Configs, c.config) {
		return true
	}
	for _, m := range c.manifests {
		if slices.Contains(v.list.Manifests, m) {
			return true
		}
	}
	for _, i := range c.indexes {
		if slices.Contains(v.list.Indexes, i) {
			return true
		}
	}
	return false
}
