package tpmdev

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
	"github.com/keelson-project/keelson/nodeattestor/quote"
)

// quoteAttempts bounds how often PCRs are read and quoted anew because they changed in
// between. IMA extends PCR 10 with every new file that runs, so a busy machine needs a few.
const quoteAttempts = 16

// ErrUnsteady says that the PCRs kept changing between reading and quoting.
var ErrUnsteady = errors.New("tpmdev: the PCRs changed each time between reading and quoting")

// BankQuote is the quote of one bank.
type BankQuote struct {
	Bank nodeclaim.HashAlg
	quote.Evidence
}

// Activate gives back the secret of a challenge (TPM 2.0 Part 3, section 12.5
// TPM2_ActivateCredential). credBlob is a TPMS_ID_OBJECT, encSecret the content of a
// TPM2B_ENCRYPTED_SECRET. The TPM refuses when the credential was made for another EK or
// for another AK. The secret crosses the bus encrypted.
func (d *Device) Activate(ctx context.Context, k AK, credBlob, encSecret []byte) ([]byte, error) {
	var secret []byte
	err := d.do(ctx, func() error {
		loaded, session, err := d.attestation(k)
		if err != nil {
			return err
		}
		e, endorsement, err := d.endorsementKey()
		if err != nil {
			return err
		}
		auth, err := d.endorsementAuth(e, endorsement)
		if err != nil {
			return err
		}
		rsp, err := tpm2.ActivateCredential{
			ActivateHandle: tpm2.AuthHandle{Handle: loaded.handle, Name: loaded.name, Auth: session},
			KeyHandle:      tpm2.AuthHandle{Handle: endorsement.handle, Name: endorsement.name, Auth: auth},
			CredentialBlob: tpm2.TPM2BIDObject{Buffer: credBlob},
			Secret:         tpm2.TPM2BEncryptedSecret{Buffer: encSecret},
		}.Execute(d.now.tpm)
		if err != nil {
			return fmt.Errorf("tpmdev: activate credential (was it made for this TPM's EK and AK?): %w", err)
		}
		secret = rsp.CertInfo.Buffer
		return nil
	})
	return secret, err
}

// endorsementAuth authorises the use of an EK: by PolicySecret of the endorsement
// hierarchy in the low range (PolicyA), by its empty authValue in the high range, whose
// templates set userWithAuth (TCG EK Credential Profile 2.x, B.3.1 and B.4.1).
func (d *Device) endorsementAuth(e *Endorsement, k *loadedKey) (tpm2.Session, error) {
	if e.template.HighRange() {
		return tpm2.PasswordAuth(nil), nil
	}
	secret := tpm2.PasswordAuth(nil)
	if len(d.opts.EndorsementAuth) > 0 { // must not cross the bus
		var err error
		if secret, err = d.salt(k, d.opts.EndorsementAuth); err != nil {
			return nil, err
		}
	}
	return tpm2.Policy(tpm2.TPMAlgSHA256, 16, func(tpm transport.TPM, handle tpm2.TPMISHPolicy, nonce tpm2.TPM2BNonce) error {
		_, err := tpm2.PolicySecret{
			AuthHandle:    tpm2.AuthHandle{Handle: tpm2.TPMRHEndorsement, Auth: secret},
			PolicySession: handle,
			NonceTPM:      nonce,
		}.Execute(tpm)
		return err
	}), nil
}

// Quote reads and quotes each selection over the nonce. A quote carries only a digest,
// so both are repeated, at most 16 times each, until the values read are the ones
// quoted; ErrUnsteady otherwise. So is the whole, until no PCR changed between the first
// bank's quote and the last one's: no log leads to values of two moments, and a server
// would have to take that for tampering.
func (d *Device) Quote(ctx context.Context, k AK, nonce []byte, selections []nodeclaim.Selection) ([]BankQuote, error) {
	for _, sel := range selections {
		if err := sel.Validate(); err != nil {
			return nil, fmt.Errorf("tpmdev: quote: %w", err)
		}
	}
	var out []BankQuote
	err := d.do(ctx, func() error {
		loaded, session, err := d.attestation(k)
		if err != nil {
			return err
		}
		out, err = d.quoteBanks(loaded, session, nonce, selections)
		return err
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

func (d *Device) quoteBanks(k *loadedKey, session tpm2.Session, nonce []byte, selections []nodeclaim.Selection) ([]BankQuote, error) {
	if len(selections) == 0 {
		return nil, errors.New("tpmdev: quote: no PCRs are asked for")
	}
	for range quoteAttempts {
		before, err := d.pcrUpdates(selections[0])
		if err != nil {
			return nil, err
		}
		out := make([]BankQuote, 0, len(selections))
		for _, sel := range selections {
			q, err := d.quoteBank(k, session, nonce, sel)
			if err != nil {
				return nil, err
			}
			out = append(out, q)
		}
		after, err := d.pcrUpdates(selections[0])
		if err != nil {
			return nil, err
		}
		if len(selections) == 1 || before == after {
			return out, nil
		}
	}
	return nil, fmt.Errorf("%w (%d banks, %d attempts); quote fewer banks or try again", ErrUnsteady, len(selections), quoteAttempts)
}

// pcrUpdates is how often PCRs were changed since the TPM's reset (TPM 2.0 Part 1, 17.9 pcrUpdateCounter).
func (d *Device) pcrUpdates(sel nodeclaim.Selection) (uint32, error) {
	rsp, err := tpm2.PCRRead{PCRSelectionIn: pcrSelection(sel.Bank, sel.PCRs[:1])}.Execute(d.now.tpm)
	if err != nil {
		return 0, fmt.Errorf("tpmdev: read the PCR update counter: %w", err)
	}
	return rsp.PCRUpdateCounter, nil
}

func (d *Device) quoteBank(k *loadedKey, session tpm2.Session, nonce []byte, sel nodeclaim.Selection) (BankQuote, error) {
	for range quoteAttempts {
		values, err := d.pcrRead(sel)
		if err != nil {
			return BankQuote{}, err
		}
		rsp, err := tpm2.Quote{
			SignHandle:     tpm2.AuthHandle{Handle: k.handle, Name: k.name, Auth: session},
			QualifyingData: tpm2.TPM2BData{Buffer: nonce},
			InScheme:       tpm2.TPMTSigScheme{Scheme: tpm2.TPMAlgNull},
			PCRSelect:      pcrSelection(sel.Bank, sel.PCRs),
		}.Execute(d.now.tpm)
		if err != nil {
			return BankQuote{}, fmt.Errorf("tpmdev: quote bank %s: %w", sel.Bank, err)
		}
		attest, err := rsp.Quoted.Contents()
		if err != nil {
			return BankQuote{}, fmt.Errorf("tpmdev: quote bank %s: %w", sel.Bank, err)
		}
		info, err := attest.Attested.Quote()
		if err != nil {
			return BankQuote{}, fmt.Errorf("tpmdev: quote bank %s: %w", sel.Bank, err)
		}
		// The AK's scheme hash is SHA-256 whatever the bank, see AKType.
		if bytes.Equal(quote.Composite(nodeclaim.SHA256, values, sel.PCRs), info.PCRDigest.Buffer) {
			return BankQuote{Bank: sel.Bank, Evidence: quote.Evidence{
				Attest:    rsp.Quoted.Bytes(),
				Signature: tpm2.Marshal(rsp.Signature),
				Values:    values,
			}}, nil
		}
	}
	return BankQuote{}, fmt.Errorf("%w (bank %s, %d attempts); quote fewer PCRs or try again", ErrUnsteady, sel.Bank, quoteAttempts)
}

// PCRRead reads PCR values of one bank, unquoted.
func (d *Device) PCRRead(ctx context.Context, sel nodeclaim.Selection) (map[int][]byte, error) {
	if err := sel.Validate(); err != nil {
		return nil, fmt.Errorf("tpmdev: read PCRs: %w", err)
	}
	var out map[int][]byte
	err := d.do(ctx, func() (err error) {
		out, err = d.pcrRead(sel)
		return err
	})
	return out, err
}

// pcrRead asks until all values are there: a TPM gives at most eight at once
// (TPM 2.0 Part 3, section 22.4 TPM2_PCR_Read).
func (d *Device) pcrRead(sel nodeclaim.Selection) (map[int][]byte, error) {
	out := make(map[int][]byte, len(sel.PCRs))
	todo := slices.Clone(sel.PCRs)
	for len(todo) > 0 {
		rsp, err := tpm2.PCRRead{PCRSelectionIn: pcrSelection(sel.Bank, todo)}.Execute(d.now.tpm)
		if err != nil {
			return nil, fmt.Errorf("tpmdev: read PCRs of bank %s: %w", sel.Bank, err)
		}
		var got []int
		if list := rsp.PCRSelectionOut.PCRSelections; len(list) == 1 && nodeclaim.HashAlg(list[0].Hash) == sel.Bank {
			got = quote.SelectionIndices(list[0].PCRSelect)
		}
		if len(got) == 0 || len(got) != len(rsp.PCRValues.Digests) {
			return nil, fmt.Errorf("tpmdev: the TPM has no PCRs %v in bank %s", todo, sel.Bank)
		}
		for i, index := range got {
			out[index] = rsp.PCRValues.Digests[i].Buffer
		}
		todo = slices.DeleteFunc(todo, func(i int) bool { return slices.Contains(got, i) })
	}
	return out, nil
}

// PCRExtend extends one PCR with one digest for each bank (TPM 2.0 Part 3, section
// 22.2), as firmware and kernel do while they boot. Banks that are not named stay as
// they are.
func (d *Device) PCRExtend(ctx context.Context, pcr int, digests map[nodeclaim.HashAlg][]byte) error {
	if pcr < 0 || pcr > nodeclaim.MaxPCR {
		return fmt.Errorf("tpmdev: extend: PCR %d is outside 0 to %d", pcr, nodeclaim.MaxPCR)
	}
	var list tpm2.TPMLDigestValues
	for _, bank := range nodeclaim.HashAlgs() {
		digest, ok := digests[bank]
		if !ok {
			continue
		}
		if len(digest) != bank.Size() {
			return fmt.Errorf("tpmdev: extend: digest for bank %s has %d bytes, wanted %d", bank, len(digest), bank.Size())
		}
		list.Digests = append(list.Digests, tpm2.TPMTHA{HashAlg: tpm2.TPMIAlgHash(bank), Digest: digest})
	}
	return d.do(ctx, func() error {
		_, err := tpm2.PCRExtend{
			PCRHandle: tpm2.AuthHandle{Handle: tpm2.TPMHandle(pcr), Auth: tpm2.PasswordAuth(nil)}, //nolint:gosec // 0 to 23
			Digests:   list,
		}.Execute(d.now.tpm)
		if err != nil {
			return fmt.Errorf("tpmdev: extend PCR %d: %w", pcr, err)
		}
		return nil
	})
}

func pcrSelection(bank nodeclaim.HashAlg, pcrs []int) tpm2.TPMLPCRSelection {
	indices := make([]uint, len(pcrs))
	for i, p := range pcrs {
		indices[i] = uint(p) // validated: 0 to 23
	}
	return tpm2.TPMLPCRSelection{PCRSelections: []tpm2.TPMSPCRSelection{{
		Hash:      tpm2.TPMIAlgHash(bank),
		PCRSelect: tpm2.PCClientCompatible.PCRs(indices...),
	}}}
}
