// Package vectors holds frozen evidence for tests: real measured boots of a virtual machine
// (measured-boots/README.md, loader-boots/README.md) and logs of other real machines (real-logs/README.md), and makes
// quoted PCR values for logs that a test invents. Only tests import it.
package vectors

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"github.com/keelson-project/keelson/nodeattestor/ak"
	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
	"github.com/keelson-project/keelson/nodeattestor/quote"
)

//go:embed measured-boots loader-boots real-logs/*/expect
var files embed.FS

// Nonce is the nonce of every quote in measured-boots.
const Nonce = "fixed-test-nonce-0001"

// Names of the files in a measured boot's folder.
const (
	EventLog = "binary_bios_measurements"
	IMALog   = "binary_runtime_measurements"
)

// Boots lists the measured boots.
func Boots() []string {
	return []string{"cmdline", "good", "good-repeat", "ima-payload-a", "ima-payload-b", "multibank", "secureboot-on"}
}

// Read is a copy of one file of a measured boot.
func Read(t testing.TB, boot, name string) []byte {
	t.Helper()
	b, err := files.ReadFile(path.Join("measured-boots", boot, name))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// LoaderNonce is the nonce of every quote in loader-boots.
const LoaderNonce = "golden"

// LoaderBoots lists the folders of boots by several loaders.
func LoaderBoots() []string {
	return []string{
		"loader-boots/grub", "loader-boots/grub-secure-boot", "loader-boots/grub-secure-boot-update", "loader-boots/grub-update",
		"loader-boots/systemd-boot", "loader-boots/systemd-boot-unified", "loader-boots/unified", "loader-boots/unified-sections",
	}
}

// ReadFile is a copy of one file of a folder of this package ("loader-boots/grub").
func ReadFile(t testing.TB, dir, name string) []byte {
	t.Helper()
	b, err := files.ReadFile(path.Join(dir, name))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// Quoted verifies the quote of a measured boot, sha256 PCRs 0 to 14, and is its values.
func Quoted(t testing.TB, boot string) quote.PCRs {
	t.Helper()
	key, err := ak.Parse(Read(t, boot, "ak.tpmpub"))
	if err != nil {
		t.Fatal(err)
	}
	all := ReadPCRs(t, boot, "pcrs.txt")
	ev := quote.Evidence{Attest: Read(t, boot, "quote.attest"), Signature: Read(t, boot, "quote.sig"), Values: map[int][]byte{}}
	sel := nodeclaim.Selection{Bank: nodeclaim.SHA256}
	for i := range 15 {
		sel.PCRs = append(sel.PCRs, i)
		ev.Values[i] = all[i]
	}
	q, err := quote.Verify(key, ev, []byte(Nonce), sel)
	if err != nil {
		t.Fatal(err)
	}
	return q.PCRs
}

// ReadPCRs reads PCR values as tpm2_pcrread wrote them in the guest.
func ReadPCRs(t testing.TB, boot, name string) map[int][]byte {
	t.Helper()
	out := map[int][]byte{}
	for line := range strings.Lines(string(Read(t, boot, name))) {
		index, value, ok := strings.Cut(line, ": 0x")
		if !ok {
			continue // the bank's heading
		}
		i, err := strconv.Atoi(strings.TrimSpace(index))
		if err != nil {
			t.Fatalf("%s/%s: %v", boot, name, err)
		}
		if out[i], err = hex.DecodeString(strings.TrimSpace(value)); err != nil {
			t.Fatalf("%s/%s: PCR %d: %v", boot, name, i, err)
		}
	}
	return out
}

// Quote makes quoted PCRs of any values: a key made here, of the shape of an attestation key,
// signs a quote over them, and quote.Verify accepts it.
func Quote(t testing.TB, values map[nodeclaim.HashAlg]map[int][]byte) quote.PCRs {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	point, err := key.PublicKey.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	public, err := ak.Parse(tpm2.Marshal(tpm2.New2B(area(point))))
	if err != nil {
		t.Fatal(err)
	}
	var parts []quote.PCRs
	for bank, v := range values {
		sel := nodeclaim.Selection{Bank: bank, PCRs: slices.Sorted(maps.Keys(v))}
		attest := attestation(sel, v)
		sum := sha256.Sum256(attest)
		r, s, err := ecdsa.Sign(rand.Reader, key, sum[:])
		if err != nil {
			t.Fatal(err)
		}
		sig := tpm2.Marshal(tpm2.TPMTSignature{SigAlg: tpm2.TPMAlgECDSA, Signature: tpm2.NewTPMUSignature(tpm2.TPMAlgECDSA, &tpm2.TPMSSignatureECC{
			Hash: tpm2.TPMAlgSHA256, SignatureR: tpm2.TPM2BECCParameter{Buffer: r.FillBytes(make([]byte, 32))}, SignatureS: tpm2.TPM2BECCParameter{Buffer: s.FillBytes(make([]byte, 32))},
		})})
		q, err := quote.Verify(public, quote.Evidence{Attest: attest, Signature: sig, Values: v}, []byte(Nonce), sel)
		if err != nil {
			t.Fatal(err)
		}
		parts = append(parts, q.PCRs)
	}
	merged, err := quote.Merge(parts...)
	if err != nil {
		t.Fatal(err)
	}
	return merged
}

// area is the public area of an attestation key with an uncompressed P-256 point.
func area(point []byte) tpm2.TPMTPublic {
	return tpm2.TPMTPublic{
		Type: tpm2.TPMAlgECC, NameAlg: tpm2.TPMAlgSHA256,
		ObjectAttributes: tpm2.TPMAObject{FixedTPM: true, FixedParent: true, SensitiveDataOrigin: true, UserWithAuth: true, Restricted: true, SignEncrypt: true},
		Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{
			CurveID: tpm2.TPMECCNistP256,
			Scheme:  tpm2.TPMTECCScheme{Scheme: tpm2.TPMAlgECDSA, Details: tpm2.NewTPMUAsymScheme(tpm2.TPMAlgECDSA, &tpm2.TPMSSigSchemeECDSA{HashAlg: tpm2.TPMAlgSHA256})},
		}),
		Unique: tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{X: tpm2.TPM2BECCParameter{Buffer: point[1:33]}, Y: tpm2.TPM2BECCParameter{Buffer: point[33:]}}),
	}
}

// attestation is the TPMS_ATTEST of a quote, composite in SHA-256 (TPM 2.0 Part 2, 10.12.4).
func attestation(sel nodeclaim.Selection, values map[int][]byte) []byte {
	h := sha256.New()
	bits := make([]byte, 3)
	for _, i := range sel.PCRs {
		h.Write(values[i])
		bits[i/8] |= 1 << (i % 8)
	}
	return tpm2.Marshal(tpm2.TPMSAttest{
		Magic: tpm2.TPMGeneratedValue, Type: tpm2.TPMSTAttestQuote, ExtraData: tpm2.TPM2BData{Buffer: []byte(Nonce)},
		Attested: tpm2.NewTPMUAttest(tpm2.TPMSTAttestQuote, &tpm2.TPMSQuoteInfo{
			PCRSelect: tpm2.TPMLPCRSelection{PCRSelections: []tpm2.TPMSPCRSelection{{Hash: tpm2.TPMIAlgHash(sel.Bank), PCRSelect: bits}}},
			PCRDigest: tpm2.TPM2BDigest{Buffer: h.Sum(nil)},
		}),
	})
}
