package image

import (
	"bytes"
	"errors"
	"fmt"
	"regexp"

	"github.com/sigstore/sigstore-go/pkg/root"
	"github.com/sigstore/sigstore-go/pkg/verify"

	"github.com/keelson-project/keelson/workloadattestor/workloadclaim"
)

// Keyless is a rule for signatures by short-lived certificates (Sigstore: Fulcio, Rekor, timestamp authorities). An identity needs
// an issuer and a subject, each exactly or by a pattern.
type Keyless struct {
	// TrustedRoot is a trusted_root.json (sigstore/protobuf-specs, sigstore_trustroot.proto). It is never fetched or renewed.
	TrustedRoot []byte
	// Issuer is the OIDC issuer in the certificate, such as "https://token.actions.githubusercontent.com".
	Issuer string
	// IssuerPattern is a regular expression (RE2) that has to match all of the issuer.
	IssuerPattern string
	// Subject is the certificate's subject alternative name: an email address or a URI.
	Subject string
	// SubjectPattern is a regular expression (RE2) that has to match all of the subject.
	SubjectPattern string
}

// maxTrustedRoot bounds a trusted_root.json.
const maxTrustedRoot = 1 << 20

// keylessVerifier accepts images with a bundle by one identity.
type keylessVerifier struct {
	name      string
	verifiers []*verify.Verifier
	identity  verify.CertificateIdentity
}

// NewKeylessVerifier makes a verifier for signatures by an identity. The certificate has to come from the trusted root's CA, and the
// time of signing has to be witnessed: by an entry in one of the root's transparency logs, or by a timestamp (RFC 3161) of one
// of its authorities. Where the root names certificate transparency logs, the certificate has to be in one of them.
func NewKeylessVerifier(name string, k Keyless) (Verifier, error) {
	if _, err := workloadclaim.NewSelector(workloadclaim.KindSignedBy, name); err != nil {
		return nil, fmt.Errorf("image: verifier's name: %w", err)
	}
	identity, err := k.identity()
	if err != nil {
		return nil, fmt.Errorf("image: verifier %s: %w", name, err)
	}
	if len(k.TrustedRoot) > maxTrustedRoot {
		return nil, fmt.Errorf("image: verifier %s: trusted root of %d bytes, the limit is %d", name, len(k.TrustedRoot), maxTrustedRoot)
	}
	trusted, err := root.NewTrustedRootFromJSON(k.TrustedRoot)
	if err != nil {
		return nil, fmt.Errorf("image: verifier %s: trusted root: %w", name, err)
	}
	v := &keylessVerifier{name: name, identity: identity}
	if v.verifiers, err = witnesses(trusted); err != nil {
		return nil, fmt.Errorf("image: verifier %s: trusted root: %w", name, err)
	}
	return v, nil
}

// witnesses makes a verifier for each way in which the time of signing can be witnessed.
func witnesses(trusted *root.TrustedRoot) ([]*verify.Verifier, error) {
	if len(trusted.FulcioCertificateAuthorities()) == 0 {
		return nil, errors.New("names no certificate authority")
	}
	var common []verify.VerifierOption
	if len(trusted.CTLogs()) > 0 {
		common = append(common, verify.WithSignedCertificateTimestamps(1))
	}
	var out []*verify.Verifier
	add := func(options ...verify.VerifierOption) error {
		v, err := verify.NewVerifier(trusted, append(options, common...)...)
		out = append(out, v)
		return err
	}
	var problems []error
	if len(trusted.RekorLogs()) > 0 {
		problems = append(problems, add(verify.WithTransparencyLog(1), verify.WithObserverTimestamps(1)))
	}
	if len(trusted.TimestampingAuthorities()) > 0 {
		problems = append(problems, add(verify.WithSignedTimestamps(1)))
	}
	if len(out) == 0 {
		return nil, errors.New("names neither a transparency log nor a timestamp authority, so no time of signing could be shown")
	}
	return out, errors.Join(problems...)
}

func (k Keyless) identity() (verify.CertificateIdentity, error) {
	issuer, err := wholePattern("issuer", k.Issuer, k.IssuerPattern)
	if err != nil {
		return verify.CertificateIdentity{}, err
	}
	subject, err := wholePattern("subject", k.Subject, k.SubjectPattern)
	if err != nil {
		return verify.CertificateIdentity{}, err
	}
	return verify.NewShortCertificateIdentity(k.Issuer, issuer, k.Subject, subject)
}

// wholePattern checks that exactly one of the two is given, and anchors the pattern: sigstore-go's own matches anywhere.
func wholePattern(what, exact, pattern string) (string, error) {
	switch {
	case (exact == "") == (pattern == ""):
		return "", fmt.Errorf("give either %s or %s_pattern", what, what)
	case pattern == "":
		return "", nil
	}
	if _, err := regexp.Compile(pattern); err != nil {
		return "", fmt.Errorf("%s_pattern: %w", what, err)
	}
	return `\A(?:` + pattern + `)\z`, nil
}

func (v *keylessVerifier) Name() string          { return v.name }
func (v *keylessVerifier) needsSignatures() bool { return true }
func (v *keylessVerifier) lists(content) bool    { return false }

// vouches wants a bundle, or a payload with a certificate, whose certificate, witness of time, signature and identity hold. What is
// read is what was verified.
func (v *keylessVerifier) vouches(s signed) (vouch, error) {
	entity, artifact := s.bundle, verify.WithoutArtifactUnsafe()
	switch {
	case s.bundle == nil && s.uncertified != nil:
		return vouch{}, fmt.Errorf("certificate: %w", s.uncertified)
	case s.bundle == nil && s.certified == nil:
		return vouch{}, errOtherSigner
	case s.bundle == nil:
		entity = s.certified
	}
	content, err := entity.VerificationContent()
	if err != nil || content.Certificate() == nil {
		return vouch{}, errOtherSigner // by a key
	}
	var reasons []error
	for _, verifier := range v.verifiers {
		if s.bundle == nil {
			artifact = verify.WithArtifact(bytes.NewReader(s.payload))
		}
		result, err := verifier.Verify(entity, verify.NewPolicy(artifact, verify.WithCertificateIdentity(v.identity)))
		if err != nil {
			reasons = append(reasons, err)
			continue
		}
		digests, err := s.subjects(result)
		return vouch{digests: digests, format: s.format(), signer: result.Signature.Certificate.SubjectAlternativeName}, err
	}
	return vouch{}, fmt.Errorf("certificate: %w", errors.Join(reasons...))
}

// subjects are the digests for which a verified signature vouches.
func (s signed) subjects(result *verify.VerificationResult) ([]string, error) {
	if s.bundle != nil {
		return statementSubjects(result.Statement)
	}
	digest, err := parsePayload(s.payload)
	return []string{digest}, err
}
