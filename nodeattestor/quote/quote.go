// Package quote turns a TPM quote into PCR values that policy may read.
//
// [Verify] is the only maker of [PCRs]: a value in it was selected by the challenge,
// covered by the quote's composite digest and signed by the attestation key over a
// fresh nonce. A value that no quote covers cannot be read from it (CVE-2024-29039).
// The package knows nothing of event logs, reference values or devices.
package quote

import (
	"bytes"
	"fmt"
	"slices"

	"github.com/google/go-tpm/tpm2"

	"github.com/keelson-project/keelson/nodeattestor/ak"
	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
)

// Evidence is one bank's quote as the agent sent it; nobody trusts these bytes yet.
type Evidence struct {
	Attest    []byte         // TPMS_ATTEST
	Signature []byte         // TPMT_SIGNATURE over Attest
	Values    map[int][]byte // claimed value of each selected PCR, of the bank's digest size
}

// Quoted is what a verified quote proves.
type Quoted struct {
	PCRs            PCRs
	ResetCount      uint32 // TPM resets since the EPS changed; obfuscated outside the endorsement hierarchy
	RestartCount    uint32 // TPM restarts and resumes since the last reset; obfuscated likewise
	Clock           uint64 // milliseconds the TPM has been powered
	Safe            bool   // false when Clock may have gone back (unorderly shutdown)
	FirmwareVersion uint64 // vendor-specific; obfuscated likewise
	// QualifiedSigner is the AK's qualified name; see ak.Key.InEndorsement.
	QualifiedSigner []byte
}

// Verify checks the quote of one bank, in this order. Who controls what: the agent all
// of ev; the server key's checks, nonce and sel.
//
//  1. size caps (ak.MaxAttestSize, ak.MaxSignatureSize);
//  2. strict parse, trailing bytes refused (TPM 2.0 Part 2, 10.12.12 TPMS_ATTEST);
//  3. magic is TPM_GENERATED_VALUE (Part 2, 6.2; Part 1, 31.5: restricted keys sign no
//     outside data that begins with it);
//  4. type is TPM_ST_ATTEST_QUOTE (Part 2, 6.9);
//  5. scheme and hash of the signature are the ones the key's area fixes (Part 2, 11.3.4), then
//     the signature over the received bytes (Part 3, 18.4 TPM2_Quote);
//  6. extraData is the nonce (Part 3, 18.4: qualifyingData);
//  7. the selection is one bank, the one asked for, with exactly the indices asked for
//     (Part 2, 10.6.2 TPMS_PCR_SELECTION);
//  8. the claimed values are exactly the selected ones, each of the bank's size;
//  9. the composite digest over them, with the signing scheme's hash and not the bank's
//     (Part 2, 10.12.4 TPMS_QUOTE_INFO; Part 1, 17.6.2);
//  10. clock and counters are handed on (Part 2, 10.11.1 TPMS_CLOCK_INFO).
//
// Errors are *nodeclaim.Refusal with a check that starts with "quote.".
func Verify(key ak.Key, ev Evidence, nonce []byte, sel nodeclaim.Selection) (Quoted, error) {
	if err := sel.Validate(); err != nil {
		return Quoted{}, refuse("selection", "the challenge itself is wrong: %v", err)
	}
	st, err := key.Open(ak.Quote, ev.Attest, ev.Signature, nonce) // 1 to 6
	if err != nil {
		return Quoted{}, err
	}
	attest := st.Attest()
	info, err := attest.Attested.Quote()
	if err != nil {
		return Quoted{}, refuse("type", "the attestation holds no quote: %v", err)
	}
	if err := checkSelection(info.PCRSelect, sel); err != nil { // 7
		return Quoted{}, err
	}
	values, err := checkValues(ev.Values, sel) // 8
	if err != nil {
		return Quoted{}, err
	}
	if got := composite(key.Hash(), values, sel.PCRs); !bytes.Equal(got, info.PCRDigest.Buffer) { // 9
		return Quoted{}, refuse("composite", "the claimed %s PCR values hash to %x, the quote covers %x", sel.Bank, got, info.PCRDigest.Buffer)
	}
	clock := attest.ClockInfo // 10
	return Quoted{
		PCRs:            PCRs{banks: map[nodeclaim.HashAlg]map[int][]byte{sel.Bank: values}},
		ResetCount:      clock.ResetCount,
		RestartCount:    clock.RestartCount,
		Clock:           clock.Clock,
		Safe:            clock.Safe,
		FirmwareVersion: attest.FirmwareVersion,
		QualifiedSigner: bytes.Clone(attest.QualifiedSigner.Buffer),
	}, nil
}

// checkSelection refuses every selection but the one asked for. "At least these" would
// let an attacker add banks, "at most these" would let him quote nothing (CVE-2022-0317).
func checkSelection(got tpm2.TPMLPCRSelection, want nodeclaim.Selection) error {
	if n := len(got.PCRSelections); n != 1 {
		return refuse("selection", "the quote has %d bank entries, wanted exactly one (%s)", n, want.Bank)
	}
	entry := got.PCRSelections[0]
	if bank := nodeclaim.HashAlg(entry.Hash); bank != want.Bank {
		return refuse("selection", "the quote covers bank %s, wanted %s", bank, want.Bank)
	}
	if indices := SelectionIndices(entry.PCRSelect); !slices.Equal(indices, want.PCRs) {
		return refuse("selection", "the quote covers PCRs %v of bank %s, wanted exactly %v", indices, want.Bank, want.PCRs)
	}
	return nil
}

// SelectionIndices lists the PCRs of a TPMS_PCR_SELECTION bit map, where bit i of byte
// j stands for PCR 8*j+i (TPM 2.0 Part 2, section 10.6.1).
func SelectionIndices(bitmap []byte) []int {
	var out []int
	for i := range 8 * len(bitmap) {
		if bitmap[i/8]>>(i%8)&1 == 1 {
			out = append(out, i)
		}
	}
	return out
}

// checkValues copies the claimed values when they are exactly the selected ones.
func checkValues(claimed map[int][]byte, sel nodeclaim.Selection) (map[int][]byte, error) {
	out := make(map[int][]byte, len(sel.PCRs))
	for _, i := range sel.PCRs {
		v, ok := claimed[i]
		if !ok {
			return nil, refuse("values", "the value of PCR %d (%s) is missing", i, sel.Bank)
		}
		if len(v) != sel.Bank.Size() {
			return nil, refuse("values", "the value of PCR %d has %d bytes, bank %s has %d", i, len(v), sel.Bank, sel.Bank.Size())
		}
		out[i] = bytes.Clone(v)
	}
	if len(claimed) != len(sel.PCRs) {
		return nil, refuse("values", "%d PCR values were sent for the %d selected", len(claimed), len(sel.PCRs))
	}
	return out, nil
}

// Composite hashes PCR values in ascending order of index, as TPM2_Quote does
// (TPM 2.0 Part 1, section 17.6.2). The agent side uses it to see whether the values
// that it read are the ones that were quoted.
func Composite(scheme nodeclaim.HashAlg, values map[int][]byte, indices []int) []byte {
	return composite(scheme, values, indices)
}

func composite(scheme nodeclaim.HashAlg, values map[int][]byte, indices []int) []byte {
	h := scheme.New()
	for _, i := range indices {
		h.Write(values[i])
	}
	return h.Sum(nil)
}

func refuse(check, format string, args ...any) *nodeclaim.Refusal {
	return nodeclaim.Refuse("quote."+check, fmt.Sprintf(format, args...))
}
