package evidence

import (
	"fmt"

	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
)

// A field names one length and its bounds, for errors that say field and limit.
type field struct {
	name     string
	size     int
	min, max int
}

func checkFields(fields ...field) error {
	for _, f := range fields {
		switch {
		case f.size > f.max:
			return fmt.Errorf("field %s: size %d, more than the limit of %d", f.name, f.size, f.max)
		case f.size < f.min && f.size == 0:
			return fmt.Errorf("field %s: missing", f.name)
		case f.size < f.min:
			return fmt.Errorf("field %s: size %d, less than %d", f.name, f.size, f.min)
		}
	}
	return nil
}

func (p *Payload) validate() error {
	for i, c := range p.EKCertificates {
		if err := checkFields(field{fmt.Sprintf("ek_certificates[%d]", i), len(c), 1, MaxCertificate}); err != nil {
			return err
		}
	}
	if len(p.EKCertificates) == 0 && len(p.EKPublic) == 0 {
		return fmt.Errorf("field ek_certificates: missing, and ek_public is missing too")
	}
	for i, n := range p.EKNotes {
		if err := checkFields(field{fmt.Sprintf("ek_notes[%d]", i), len(n), 1, MaxEKNote}); err != nil {
			return err
		}
	}
	for i, b := range p.Banks {
		if !b.Valid() {
			return fmt.Errorf("field banks[%d]: %s is not a known hash algorithm", i, b)
		}
	}
	return checkFields(
		field{"ek_certificates", len(p.EKCertificates), 0, MaxCertificates},
		field{"ek_public", len(p.EKPublic), 0, MaxPublic},
		field{"ak_public", len(p.AKPublic), 1, MaxPublic},
		field{"banks", len(p.Banks), 1, MaxBanks},
		field{"token", len(p.Token), 0, MaxToken},
		field{"ek_notes", len(p.EKNotes), 0, MaxEKNotes},
	)
}

func (c *Challenge) validate() error {
	for i, s := range c.Selections {
		if err := (nodeclaim.Selection{Bank: s.Bank, PCRs: s.PCRs}).Validate(); err != nil {
			return fmt.Errorf("field selections[%d]: %w", i, err)
		}
	}
	return checkFields(
		field{"credential_blob", len(c.CredentialBlob), 1, MaxCredential},
		field{"encrypted_secret", len(c.EncryptedSecret), 1, MaxCredential},
		field{"nonce", len(c.Nonce), NonceSize, NonceSize},
		field{"selections", len(c.Selections), 1, MaxBanks},
	)
}

func (r *Response) validate() error {
	for i := range r.Quotes {
		if err := r.Quotes[i].validate(); err != nil {
			return fmt.Errorf("field quotes[%d]: %w", i, err)
		}
	}
	if r.Tag != nil {
		if err := r.Tag.validate(); err != nil {
			return fmt.Errorf("field tag: %w", err)
		}
	}
	for i := range r.Chunks {
		if err := r.Chunks[i].validate(); err != nil {
			return fmt.Errorf("field chunks[%d]: %w", i, err)
		}
	}
	return checkFields(
		field{"secret", len(r.Secret), 1, SecretSize},
		field{"quotes", len(r.Quotes), 1, MaxBanks},
		field{"chunks", len(r.Chunks), 0, MaxChunksPerReply},
		field{"command_line", len(r.CommandLine), 0, MaxCommandLine},
	)
}

func (q *Quote) validate() error {
	if !q.Bank.Valid() {
		return fmt.Errorf("field bank: %s is not a known hash algorithm", q.Bank)
	}
	for i, v := range q.Values {
		if len(v) != q.Bank.Size() {
			return fmt.Errorf("field values[%d]: size %d, a %s PCR has %d", i, len(v), q.Bank, q.Bank.Size())
		}
	}
	return checkFields(
		field{"attest", len(q.Attest), 1, MaxAttest},
		field{"signature", len(q.Signature), 1, MaxSignature},
		field{"values", len(q.Values), 1, nodeclaim.MaxPCR + 1},
	)
}

func (t *TagEvidence) validate() error {
	return checkFields(
		field{"document", len(t.Document), 1, MaxTagDocument},
		field{"attest", len(t.Attest), 1, MaxAttest},
		field{"signature", len(t.Signature), 1, MaxSignature},
	)
}

func (k LogKind) validate() error {
	if k != EventLog && k != IMALog && k != UserspaceLog {
		return fmt.Errorf("field log: %s is unknown", k)
	}
	return nil
}

func (c *Continue) validate() error { return c.Log.validate() }

func (c *Chunk) validate() error {
	if err := c.Log.validate(); err != nil {
		return err
	}
	return checkFields(field{"data", len(c.Data), 1, MaxChunkData})
}
