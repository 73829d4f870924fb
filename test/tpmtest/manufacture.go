package tpmtest

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/binary"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
	"github.com/google/go-tpm/tpm2/transport/linuxudstpm"

	"github.com/keelson-project/keelson/nodeattestor/ek"
)

// CA is a TPM manufacturer's certification authority: a root and an issuing CA.
type CA struct {
	root, issuer       *x509.Certificate
	rootKey, issuerKey *ecdsa.PrivateKey
}

// Validity of everything that a CA issues unless told otherwise.
var (
	notBefore = time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC)
	notAfter  = time.Date(2199, 12, 31, 23, 59, 59, 0, time.UTC)
)

// NewCA makes a manufacturer with fresh keys.
func NewCA() (*CA, error) {
	ca := &CA{}
	var err error
	if ca.rootKey, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		return nil, fmt.Errorf("tpmtest: %w", err)
	}
	if ca.issuerKey, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		return nil, fmt.Errorf("tpmtest: %w", err)
	}
	if ca.root, err = caCertificate("Test TPM root", ca.rootKey.Public(), nil, ca.rootKey); err != nil {
		return nil, err
	}
	ca.issuer, err = caCertificate("Test TPM issuer", ca.issuerKey.Public(), ca.root, ca.rootKey)
	return ca, err
}

func caCertificate(name string, key crypto.PublicKey, parent *x509.Certificate, signer crypto.Signer) (*x509.Certificate, error) {
	template := &x509.Certificate{
		SerialNumber:          big.NewInt(1),
		Subject:               pkix.Name{CommonName: name},
		NotBefore:             notBefore,
		NotAfter:              notAfter,
		IsCA:                  true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageCertSign,
	}
	if parent == nil {
		parent = template
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key, signer)
	if err != nil {
		return nil, fmt.Errorf("tpmtest: %w", err)
	}
	return x509.ParseCertificate(der)
}

// Root is the manufacturer's root certificate.
func (ca *CA) Root() *x509.Certificate { return ca.root }

// Issuer is the certificate of the issuing CA.
func (ca *CA) Issuer() *x509.Certificate { return ca.issuer }

// RootPEM is Root for a configuration file.
func (ca *CA) RootPEM() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.root.Raw})
}

// EKOptions are ways to make an EK certificate unusual or wrong. The zero value is right.
type EKOptions struct {
	NotBefore, NotAfter time.Time
	Manufacturer        string                // "" is id:4B454C53
	NoSAN               bool                  // leave the subject alternative name out
	SAN                 []byte                // its DER value, instead of the right one
	ExtKeyUsage         asn1.ObjectIdentifier // nil is tcg-kp-EKCertificate
	NoExtKeyUsage       bool
	KeyUsage            x509.KeyUsage // 0 is right for the key
	IsCA                bool
	OAEP                bool // mark an RSA key id-RSAESOAEP
	Extra               []pkix.Extension
}

// DefaultManufacturer is the vendor id in the certificates of a CA.
const DefaultManufacturer = "id:4B454C53"

// IssueEK issues an EK certificate (DER) for a key by the issuing CA.
func (ca *CA) IssueEK(key crypto.PublicKey, o EKOptions) ([]byte, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, fmt.Errorf("tpmtest: %w", err)
	}
	template := &x509.Certificate{
		SerialNumber:          serial,
		NotBefore:             notBefore,
		NotAfter:              notAfter,
		BasicConstraintsValid: true,
		IsCA:                  o.IsCA,
		KeyUsage:              o.KeyUsage,
		ExtraExtensions:       o.Extra,
	}
	if !o.NotBefore.IsZero() {
		template.NotBefore = o.NotBefore
	}
	if !o.NotAfter.IsZero() {
		template.NotAfter = o.NotAfter
	}
	if template.KeyUsage == 0 {
		template.KeyUsage = x509.KeyUsageKeyAgreement
		if _, ok := key.(*rsa.PublicKey); ok {
			template.KeyUsage = x509.KeyUsageKeyEncipherment
		}
	}
	if !o.NoExtKeyUsage {
		template.UnknownExtKeyUsage = []asn1.ObjectIdentifier{{2, 23, 133, 8, 1}}
		if o.ExtKeyUsage != nil {
			template.UnknownExtKeyUsage[0] = o.ExtKeyUsage
		}
	}
	if !o.NoSAN {
		san := o.SAN
		if san == nil {
			if san, err = SubjectAltName(orDefault(o.Manufacturer), "Test TPM", "id:00010002"); err != nil {
				return nil, err
			}
		}
		template.ExtraExtensions = append(template.ExtraExtensions, pkix.Extension{Id: asn1.ObjectIdentifier{2, 5, 29, 17}, Critical: true, Value: san})
	}
	der, err := x509.CreateCertificate(rand.Reader, template, ca.issuer, key, ca.issuerKey)
	if err != nil {
		return nil, fmt.Errorf("tpmtest: %w", err)
	}
	if o.OAEP {
		return ca.markOAEP(der)
	}
	return der, nil
}

func orDefault(manufacturer string) string {
	if manufacturer == "" {
		return DefaultManufacturer
	}
	return manufacturer
}

// SubjectAltName is the DER value of a subject alternative name with one directoryName
// that holds the TPM attributes (TCG EK Credential Profile 2.x, 3.2.9). Empty strings
// are left out.
func SubjectAltName(manufacturer, model, version string) ([]byte, error) {
	var rdn pkix.RelativeDistinguishedNameSET
	for i, v := range []string{manufacturer, model, version} {
		if v != "" {
			rdn = append(rdn, pkix.AttributeTypeAndValue{Type: asn1.ObjectIdentifier{2, 23, 133, 2, i + 1}, Value: v})
		}
	}
	name, err := asn1.Marshal(pkix.RDNSequence{rdn})
	if err != nil {
		return nil, fmt.Errorf("tpmtest: %w", err)
	}
	general, err := asn1.Marshal([]asn1.RawValue{{Class: asn1.ClassContextSpecific, Tag: 4, IsCompound: true, Bytes: name}})
	if err != nil {
		return nil, fmt.Errorf("tpmtest: %w", err)
	}
	return general, nil
}

// markOAEP turns rsaEncryption into id-RSAESOAEP and signs anew; both names have one length.
func (ca *CA) markOAEP(der []byte) ([]byte, error) {
	var cert struct {
		TBS       asn1.RawValue
		Algorithm pkix.AlgorithmIdentifier
		Signature asn1.BitString
	}
	if _, err := asn1.Unmarshal(der, &cert); err != nil {
		return nil, fmt.Errorf("tpmtest: %w", err)
	}
	rsaEncryption := []byte{0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 1}
	oaep := bytes.Clone(rsaEncryption)
	oaep[len(oaep)-1] = 7
	if bytes.Count(cert.TBS.FullBytes, rsaEncryption) != 1 {
		return nil, errors.New("tpmtest: not an RSA key's certificate")
	}
	cert.TBS = asn1.RawValue{FullBytes: bytes.Replace(cert.TBS.FullBytes, rsaEncryption, oaep, 1)}
	digest := sha256.Sum256(cert.TBS.FullBytes)
	sig, err := ecdsa.SignASN1(rand.Reader, ca.issuerKey, digest[:])
	if err != nil {
		return nil, fmt.Errorf("tpmtest: %w", err)
	}
	cert.Signature = asn1.BitString{Bytes: sig, BitLength: 8 * len(sig)}
	return asn1.Marshal(cert)
}

// Manufacture does what a TPM's factory does: for each EK template named ("L-1" and
// "L-2" when none is) it makes the TPM's EK, certifies it and stores the certificate in
// the template's NV index; the issuing CA's certificate goes where chains are kept.
// path is the TPM's socket.
func Manufacture(ctx context.Context, path string, ca *CA, templates ...string) error {
	tpm, err := linuxudstpm.Open(path)
	if err != nil {
		return fmt.Errorf("tpmtest: %w", err)
	}
	if len(templates) == 0 {
		templates = []string{"L-1", "L-2"}
	}
	for _, t := range ek.Templates() {
		for _, name := range templates {
			if t.Name != name {
				continue
			}
			if err := ctx.Err(); err != nil {
				return err
			}
			if err := certify(tpm, ca, t); err != nil {
				return fmt.Errorf("tpmtest: EK template %s: %w", name, err)
			}
		}
	}
	return StoreNV(path, chainIndex, ca.issuer.Raw)
}

const chainIndex = 0x01c00100

func certify(tpm transport.TPM, ca *CA, t ek.Template) error {
	rsp, err := tpm2.CreatePrimary{
		PrimaryHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHEndorsement, Auth: tpm2.PasswordAuth(nil)},
		InPublic:      tpm2.New2B(t.Area()),
	}.Execute(tpm)
	if err != nil {
		return err
	}
	if _, err := (tpm2.FlushContext{FlushHandle: rsp.ObjectHandle}).Execute(tpm); err != nil {
		return err
	}
	area, err := rsp.OutPublic.Contents()
	if err != nil {
		return err
	}
	key, err := tpm2.Pub(*area)
	if err != nil {
		return err
	}
	der, err := ca.IssueEK(key, EKOptions{})
	if err != nil {
		return err
	}
	return storeNV(tpm, t.NVIndex, der)
}

// StoreNV writes a platform-owned NV index as a factory would, replacing what is there.
func StoreNV(path string, index uint32, data []byte) error {
	tpm, err := linuxudstpm.Open(path)
	if err != nil {
		return fmt.Errorf("tpmtest: %w", err)
	}
	if err := storeNV(tpm, index, data); err != nil {
		return fmt.Errorf("tpmtest: NV index 0x%08x: %w", index, err)
	}
	return nil
}

func storeNV(tpm transport.TPM, index uint32, data []byte) error {
	platform := tpm2.AuthHandle{Handle: tpm2.TPMRHPlatform, Auth: tpm2.PasswordAuth(nil)}
	handle := tpm2.TPMHandle(index)
	if old, err := (tpm2.NVReadPublic{NVIndex: handle}).Execute(tpm); err == nil {
		if _, err := (tpm2.NVUndefineSpace{AuthHandle: platform, NVIndex: tpm2.NamedHandle{Handle: handle, Name: old.NVName}}).Execute(tpm); err != nil {
			return err
		}
	}
	_, err := tpm2.NVDefineSpace{AuthHandle: platform, PublicInfo: tpm2.New2B(tpm2.TPMSNVPublic{
		NVIndex: handle,
		NameAlg: tpm2.TPMAlgSHA256,
		Attributes: tpm2.TPMANV{
			NT: tpm2.TPMNTOrdinary, PPWrite: true, PPRead: true, OwnerRead: true, AuthRead: true, NoDA: true, PlatformCreate: true,
		},
		DataSize: uint16(len(data)),
	})}.Execute(tpm)
	if err != nil {
		return err
	}
	for offset := 0; offset < len(data); offset += 512 {
		public, err := tpm2.NVReadPublic{NVIndex: handle}.Execute(tpm) // the first write changes the name
		if err != nil {
			return err
		}
		_, err = tpm2.NVWrite{
			AuthHandle: platform,
			NVIndex:    tpm2.NamedHandle{Handle: handle, Name: public.NVName},
			Data:       tpm2.TPM2BMaxNVBuffer{Buffer: data[offset:min(offset+512, len(data))]},
			Offset:     uint16(offset),
		}.Execute(tpm)
		if err != nil {
			return err
		}
	}
	return nil
}

// Persist makes a primary key in the endorsement hierarchy and keeps it at a persistent
// handle, as provisioning tools do.
func Persist(path string, handle tpm2.TPMHandle, area tpm2.TPMTPublic) error {
	tpm, err := linuxudstpm.Open(path)
	if err != nil {
		return fmt.Errorf("tpmtest: %w", err)
	}
	made, err := tpm2.CreatePrimary{
		PrimaryHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHEndorsement, Auth: tpm2.PasswordAuth(nil)},
		InPublic:      tpm2.New2B(area),
	}.Execute(tpm)
	if err != nil {
		return fmt.Errorf("tpmtest: %w", err)
	}
	_, err = tpm2.EvictControl{
		Auth:             tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth(nil)},
		ObjectHandle:     &tpm2.NamedHandle{Handle: made.ObjectHandle, Name: made.Name},
		PersistentHandle: handle,
	}.Execute(tpm)
	_, flushErr := tpm2.FlushContext{FlushHandle: made.ObjectHandle}.Execute(tpm)
	return errors.Join(err, flushErr)
}

// SetAuth changes the authorisation of a hierarchy from empty to auth.
func SetAuth(path string, hierarchy tpm2.TPMHandle, auth []byte) error {
	tpm, err := linuxudstpm.Open(path)
	if err != nil {
		return fmt.Errorf("tpmtest: %w", err)
	}
	_, err = tpm2.HierarchyChangeAuth{
		AuthHandle: tpm2.AuthHandle{Handle: hierarchy, Auth: tpm2.PasswordAuth(nil)},
		NewAuth:    tpm2.TPM2BAuth{Buffer: auth},
	}.Execute(tpm)
	if err != nil {
		return fmt.Errorf("tpmtest: %w", err)
	}
	return nil
}

// Clear does what "clear the TPM" in a firmware's setup does: the owner's keys and NV
// indices go, the endorsement seed stays (TPM 2.0 Part 3, section 24.6 TPM2_Clear).
func Clear(path string) error {
	tpm, err := linuxudstpm.Open(path)
	if err != nil {
		return fmt.Errorf("tpmtest: %w", err)
	}
	_, err = tpm2.Clear{AuthHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHPlatform, Auth: tpm2.PasswordAuth(nil)}}.Execute(tpm)
	return errors.Join(err, tpm.Close())
}

// ChangeEPS gives the TPM a new endorsement seed, which makes it another TPM in all but
// its housing (TPM 2.0 Part 3, section 24.5 TPM2_ChangeEPS).
func ChangeEPS(path string) error {
	tpm, err := linuxudstpm.Open(path)
	if err != nil {
		return fmt.Errorf("tpmtest: %w", err)
	}
	response, err := tpm.Send([]byte{
		0x80, 0x02, 0, 0, 0, 27, 0, 0, 0x01, 0x24, // TPM_ST_SESSIONS, size, TPM_CC_ChangeEPS
		0x40, 0, 0, 0x0c, // TPM_RH_PLATFORM
		0, 0, 0, 9, 0x40, 0, 0, 0x09, 0, 0, 0, 0, 0, // its empty password
	})
	if err := errors.Join(err, tpm.Close()); err != nil {
		return fmt.Errorf("tpmtest: %w", err)
	}
	if rc := tpm2.TPMRC(binary.BigEndian.Uint32(response[6:])); rc != tpm2.TPMRCSuccess {
		return fmt.Errorf("tpmtest: change the endorsement seed: %w", rc)
	}
	return nil
}
