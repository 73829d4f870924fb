package image

import (
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/keelson-project/keelson/workloadattestor/workloadclaim"
)

// VerifierSpec is a verifier as configurations have it: exactly one of keys, an identity, or digests.
type VerifierSpec struct {
	// PublicKeyPath is a PEM file with one or more "PUBLIC KEY" blocks.
	PublicKeyPath string
	// Keyless is an identity; TrustedRootPath takes the place of its TrustedRoot.
	Keyless         *Keyless
	TrustedRootPath string
	// Manifests, Indexes and Configs are digests of images that are accepted without a signature, each under its kind.
	Manifests, Indexes, Configs []string
}

// maxKeyFile bounds a file of public keys.
const maxKeyFile = 64 << 10

// Verifier reads the files that a specification names and makes the verifier.
func (s VerifierSpec) Verifier(name string) (Verifier, error) {
	digests := len(s.Manifests)+len(s.Indexes)+len(s.Configs) > 0
	given := 0
	for _, is := range []bool{s.PublicKeyPath != "", s.Keyless != nil, digests} {
		if is {
			given++
		}
	}
	switch {
	case given != 1:
		return nil, errors.New("give a file of public keys, or keyless, or digests (manifests, indexes, configs), and only one of them: make two verifiers")
	case digests:
		list, err := s.digests()
		if err != nil {
			return nil, err
		}
		return NewDigestVerifier(name, list)
	case s.Keyless != nil:
		return s.keyless(name)
	}
	keys, err := ReadFile(s.PublicKeyPath, maxKeyFile)
	if err != nil {
		return nil, err
	}
	v, err := NewKeyVerifier(name, keys)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", s.PublicKeyPath, err)
	}
	return v, nil
}

func (s VerifierSpec) keyless(name string) (Verifier, error) {
	raw, err := ReadFile(s.TrustedRootPath, maxTrustedRoot)
	if err != nil {
		return nil, fmt.Errorf("trusted root: %w", err)
	}
	k := *s.Keyless
	k.TrustedRoot = raw
	return NewKeylessVerifier(name, k)
}

// ReadCAs reads the PEM files of RegistryCAs, by registry.
func ReadCAs(paths map[string]string) (map[string][]byte, error) {
	out := make(map[string][]byte, len(paths))
	var problems []error
	for host, path := range paths {
		raw, err := ReadFile(path, maxTrustedRoot)
		if err != nil {
			problems = append(problems, fmt.Errorf("CA certificates of registry %s: %w", short(host), err))
		}
		out[host] = raw
	}
	return out, errors.Join(problems...)
}

// ReadFile reads a file of at most limit bytes.
func ReadFile(path string, limit int64) (raw []byte, err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	raw, err = io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(raw)) > limit {
		return nil, fmt.Errorf("%s is larger than %d bytes", path, limit)
	}
	return raw, err
}

// digests reads the digests, each under its kind. All problems are reported at once.
func (s VerifierSpec) digests() (DigestList, error) {
	m, err1 := parseAll(s.Manifests, workloadclaim.ParseManifestDigest)
	i, err2 := parseAll(s.Indexes, workloadclaim.ParseIndexDigest)
	c, err3 := parseAll(s.Configs, workloadclaim.ParseConfigDigest)
	return DigestList{Manifests: m, Indexes: i, Configs: c}, errors.Join(err1, err2, err3)
}

func parseAll[D any](texts []string, parse func(string) (D, error)) ([]D, error) {
	var out []D
	var problems []error
	for _, text := range texts {
		d, err := parse(text)
		if err != nil {
			problems = append(problems, err)
			continue
		}
		out = append(out, d)
	}
	return out, errors.Join(problems...)
}
