package tpmdev

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/keelson-project/keelson/boundedfile"
	"github.com/keelson-project/keelson/nodeattestor/ek"
)

// AKFile is the file under the agent's data directory that keeps the AK across
// restarts. It holds no secret: the key itself is derived inside the TPM from the
// endorsement seed and the random number kept here.
const AKFile = "ak.json"

// akState is the content of AKFile.
type akState struct {
	Version  int    `json:"version"`
	Type     AKType `json:"type,omitempty"` // "" is ECDSA
	Unique   string `json:"unique"`         // hex, random bytes
	Public   string `json:"public"`         // hex, the AK's TPMT_PUBLIC
	Template string `json:"template"`       // EK template of the sessions' salt
	EK       string `json:"ek"`             // hex, that EK's TPMT_PUBLIC
}

const (
	akStateVersion = 1
	maxStateSize   = 16 << 10
)

func readAK(path string) (AK, error) {
	data, err := readState(path)
	if err != nil {
		return AK{}, fmt.Errorf("tpmdev: attestation key: %w", err)
	}
	k, err := parseAK(data)
	if err != nil {
		return AK{}, fmt.Errorf("tpmdev: attestation key: %s: %w; remove it to start with a new attestation key", path, err)
	}
	return k, nil
}

// readState reads the file up to one byte beyond its limit.
func readState(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	data, err := io.ReadAll(io.LimitReader(f, maxStateSize+1))
	return data, errors.Join(err, f.Close())
}

// parseAK reads the content of AKFile, strictly: a key that is read differently than it was
// written is another key.
func parseAK(data []byte) (AK, error) {
	bad := func(what string) (AK, error) { return AK{}, errors.New(what) }
	if len(data) > maxStateSize {
		return bad(fmt.Sprintf("it has more than the %d bytes allowed", maxStateSize))
	}
	var s akState
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&s); err != nil {
		return bad(err.Error())
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return bad("something follows the key")
	}
	if s.Version != akStateVersion {
		return bad(fmt.Sprintf("version %d is not %d", s.Version, akStateVersion))
	}
	k := AK{}
	for _, t := range ek.Templates() {
		if t.Name == s.Template {
			k.salt = t
		}
	}
	unique, err1 := hex.DecodeString(s.Unique)
	public, err2 := hex.DecodeString(s.Public)
	saltEK, err3 := hex.DecodeString(s.EK)
	if err := errors.Join(err1, err2, err3); err != nil {
		return bad(err.Error())
	}
	var err error
	if k.kind, err = ParseAKType(string(s.Type)); err != nil {
		return bad(err.Error())
	}
	if k.salt.Name == "" || len(unique) != k.kind.uniqueSize() || len(public) == 0 || len(saltEK) == 0 {
		return bad("a field is missing or of the wrong size")
	}
	k.unique, k.Public, k.saltEK = unique, sized(public), saltEK
	return k, nil
}

// marshal is the content of AKFile.
func (k AK) marshal() ([]byte, error) {
	data, err := json.MarshalIndent(akState{
		Version:  akStateVersion,
		Type:     k.kind,
		Unique:   hex.EncodeToString(k.unique),
		Public:   hex.EncodeToString(k.Public[2:]),
		Template: k.salt.Name,
		EK:       hex.EncodeToString(k.saltEK),
	}, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("tpmdev: attestation key: %w", err)
	}
	return append(data, '\n'), nil
}

// writeAK writes the state so that a crash leaves the old file, the new one or none.
func writeAK(path string, k AK) error {
	data, err := k.marshal()
	if err != nil {
		return err
	}
	if err := boundedfile.Replace(path, data, 0o600); err != nil {
		return fmt.Errorf("tpmdev: attestation key: %w", err)
	}
	return nil
}
