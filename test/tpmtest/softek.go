package tpmtest

import (
	"crypto"
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"
)

// SoftEK is an endorsement key without a TPM, for tests of what a server bears: a machine takes hundreds of these, and few TPMs.
type SoftEK struct {
	Key *ecdsa.PrivateKey // P-256; the area is that of template L-2
}

// NewSoftEK makes one.
func NewSoftEK() (*SoftEK, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("tpmtest: %w", err)
	}
	return &SoftEK{key}, nil
}

// Activate is what TPM2_ActivateCredential does with a credential for this EK and the name of an AK: it checks that it is for that name, and
// gives the secret (TPM 2.0 Part 1, section 24 and annex C.6.4). Both inputs are without a size field.
func (k *SoftEK) Activate(credBlob, encSecret, name []byte) ([]byte, error) {
	const size = 32 // of a coordinate, and of SHA-256
	point, err := tpm2.Unmarshal[tpm2.TPMSECCPoint](encSecret)
	if err != nil {
		return nil, fmt.Errorf("tpmtest: activate: %w", err)
	}
	fill := func(b []byte) []byte { return append(make([]byte, size-min(size, len(b))), b...) }
	x := fill(point.X.Buffer)
	ephemeral, err := ecdh.P256().NewPublicKey(append(append([]byte{4}, x...), fill(point.Y.Buffer)...))
	if err != nil {
		return nil, fmt.Errorf("tpmtest: activate: %w", err)
	}
	own, err := k.Key.ECDH()
	if err != nil {
		return nil, fmt.Errorf("tpmtest: activate: %w", err)
	}
	z, err := own.ECDH(ephemeral)
	if err != nil {
		return nil, fmt.Errorf("tpmtest: activate: %w", err)
	}
	seed := tpm2.KDFe(crypto.SHA256, z, "IDENTITY", x, own.PublicKey().Bytes()[1:1+size], 8*size)
	if len(credBlob) < 2+size || binary.BigEndian.Uint16(credBlob) != size {
		return nil, errors.New("tpmtest: activate: the credential is cut")
	}
	sum, encrypted := credBlob[2:2+size], credBlob[2+size:]
	mac := hmac.New(crypto.SHA256.New, tpm2.KDFa(crypto.SHA256, seed, "INTEGRITY", nil, nil, 8*size))
	mac.Write(encrypted)
	mac.Write(name)
	if !hmac.Equal(mac.Sum(nil), sum) {
		return nil, errors.New("tpmtest: activate: the credential is for another name")
	}
	block, err := aes.NewCipher(tpm2.KDFa(crypto.SHA256, seed, "STORAGE", name, nil, 128))
	if err != nil {
		return nil, fmt.Errorf("tpmtest: activate: %w", err)
	}
	plain := make([]byte, len(encrypted))
	cipher.NewCFBDecrypter(block, make([]byte, aes.BlockSize)).XORKeyStream(plain, encrypted) //nolint:staticcheck // the TPM's mode
	secret, err := tpm2.Unmarshal[tpm2.TPM2BDigest](plain)
	if err != nil {
		return nil, fmt.Errorf("tpmtest: activate: %w", err)
	}
	return secret.Buffer, nil
}
