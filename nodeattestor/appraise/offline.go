package appraise

import (
	"bytes"
	"fmt"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/keelson-project/keelson/nodeattestor/ak"
	"github.com/keelson-project/keelson/nodeattestor/eventlog"
	"github.com/keelson-project/keelson/nodeattestor/ima"
	"github.com/keelson-project/keelson/nodeattestor/imasig"
	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
	"github.com/keelson-project/keelson/nodeattestor/quote"
	"github.com/keelson-project/keelson/nodeattestor/reference"
)

// Bundle is evidence that was collected into files: no challenge was asked, no credential
// activated. It proves what a TPM with this AK quoted, not which machine's TPM it was.
type Bundle struct {
	Attest      []byte // TPMS_ATTEST of a quote over PCRs of one bank
	Signature   []byte // TPMT_SIGNATURE
	AK          []byte // TPM2B_PUBLIC
	EventLog    []byte // TCG log
	Userspace   []byte // systemd's log of what it measured after boot, may be empty
	IMALog      []byte // binary measurement list, may be empty
	CommandLine string // an offer, see Input
	// OSExtended are further PCRs that the operating system extends, and Values what they are said to
	// hold: no log leads to them, and the quote, which has a digest of all values only, decides.
	OSExtended []int
	Values     map[int][]byte
}

// Offline appraises a bundle. A quote carries only the digest of the PCRs, so their values come
// from the logs, and the quote decides whether these are true: the event log gives every PCR but
// 10, alone or with all of user space's log after it, each prefix of the IMA list a value for that. The selection is the
// quote's own; a reference set that pins more is not met. A quote over PCRs that no log covers (a dynamic launch)
// cannot be appraised this way.
func Offline(b Bundle, nonce []byte, sets reference.Sets, opt ima.Options, now time.Time) (Outcome, quote.PCRs, nodeclaim.Refusals) {
	proven, result, err := b.prove(nonce, opt)
	if err != nil {
		return Outcome{}, proven, refusals(err)
	}
	out, refused := Logs(Input{PCRs: proven, EventLog: b.EventLog, Userspace: b.Userspace, CommandLine: b.CommandLine, IMA: result, Sets: sets, Now: now, OSExtended: b.OSExtended})
	return out, proven, refused
}

// Capture makes a reference set from the bundle of a golden node, whose quote must prove its
// logs. The nonce is the quote's own: what was good on that machine once is what a set holds. Files that one
// of the keys signed are allowed as such, and not listed. A set that would pin nothing about the kernel is an error.
func Capture(name string, b Bundle, opt ima.Options, keys ...imasig.Key) (reference.Set, error) {
	ev, err := b.golden(opt)
	if err != nil {
		return reference.Set{}, err
	}
	return reference.Capture(name, ev, keys...)
}

// CaptureUnpinned is Capture that also makes a set that pins nothing about the kernel (reference.CaptureUnpinned).
func CaptureUnpinned(name string, b Bundle, opt ima.Options, keys ...imasig.Key) (reference.Set, error) {
	ev, err := b.golden(opt)
	if err != nil {
		return reference.Set{}, err
	}
	return reference.CaptureUnpinned(name, ev, keys...)
}

// Absent says what a capture of the bundle would not pin, and what would measure it (reference.Absent). It is empty where
// the quote does not prove the bundle's logs.
func Absent(b Bundle, opt ima.Options) []string {
	ev, err := b.golden(opt)
	if err != nil {
		return nil
	}
	return reference.Absent(ev)
}

// Gaps says what the bundle's command line leaves open of what IMA measures (reference.Gaps). It is empty where the quote does
// not prove the bundle's logs.
func Gaps(b Bundle, opt ima.Options) []string {
	ev, err := b.golden(opt)
	if err != nil {
		return nil
	}
	return reference.Gaps(ev)
}

// golden is what the bundle proves, by the quote's own nonce.
func (b Bundle) golden(opt ima.Options) (reference.Evidence, error) {
	attest, err := tpm2.Unmarshal[tpm2.TPMSAttest](b.Attest)
	if err != nil {
		return reference.Evidence{}, nodeclaim.Refuse("quote.parse", fmt.Sprintf("the quote is not a TPMS_ATTEST: %v", err))
	}
	proven, result, err := b.prove(attest.ExtraData.Buffer, opt)
	if err != nil {
		return reference.Evidence{}, err
	}
	boot, err := eventlog.ReplayBoth(b.EventLog, b.Userspace, proven, b.OSExtended...)
	if err != nil {
		return reference.Evidence{}, err
	}
	return reference.Evidence{Boot: boot.ConfirmCommandLine(b.CommandLine), PCRs: proven, IMA: result}, nil
}

// prove finds the PCR values that the quote covers and replays the IMA list to them.
func (b Bundle) prove(nonce []byte, opt ima.Options) (quote.PCRs, *ima.Result, error) {
	key, err := ak.Parse(b.AK)
	if err != nil {
		return quote.PCRs{}, nil, err
	}
	statement, err := key.Open(ak.Quote, b.Attest, b.Signature, nonce)
	if err != nil {
		return quote.PCRs{}, nil, err
	}
	attest := statement.Attest()
	info, err := attest.Attested.Quote()
	if err != nil {
		return quote.PCRs{}, nil, nodeclaim.Refuse("quote.type", fmt.Sprintf("the attestation holds no quote: %v", err))
	}
	sel, err := ownSelection(info.PCRSelect)
	if err != nil {
		return quote.PCRs{}, nil, err
	}
	log, err := eventlog.Parse(b.EventLog)
	if err != nil {
		return quote.PCRs{}, nil, err
	}
	if log, err = log.WithUserspace(b.Userspace); err != nil {
		return quote.PCRs{}, nil, err
	}
	values, err := log.Unverified(sel.Bank)
	if err != nil {
		return quote.PCRs{}, nil, err
	}
	b.claim(values)
	if !b.search(key.Hash(), info.PCRDigest.Buffer, sel, values, opt) {
		now, err := log.UnverifiedNow(sel.Bank)
		if err != nil {
			return quote.PCRs{}, nil, err
		}
		b.claim(now)
		if !b.search(key.Hash(), info.PCRDigest.Buffer, sel, now, opt) {
			return quote.PCRs{}, nil, b.explain(sel, values, opt)
		}
		values = now
	}
	q, err := quote.Verify(key, quote.Evidence{Attest: b.Attest, Signature: b.Signature, Values: selected(values, sel)}, nonce, sel)
	if err != nil {
		return quote.PCRs{}, nil, err
	}
	result, err := b.replayIMA(q.PCRs, opt)
	return q.PCRs, result, err
}

// claim takes over what PCRs are said to hold that the operating system extends.
func (b Bundle) claim(values map[int][]byte) {
	for _, i := range b.OSExtended {
		if v, ok := b.Values[i]; ok && len(v) == len(values[i]) {
			values[i] = v
		}
	}
}

// ownSelection is the one bank that the quote is over.
func ownSelection(l tpm2.TPMLPCRSelection) (nodeclaim.Selection, error) {
	var sel nodeclaim.Selection
	if len(l.PCRSelections) != 1 {
		return sel, nodeclaim.Refuse("quote.selection", fmt.Sprintf("the quote is over %d banks; one quote a bank is known here", len(l.PCRSelections)))
	}
	sel.Bank = nodeclaim.HashAlg(l.PCRSelections[0].Hash)
	for i, bits := range l.PCRSelections[0].PCRSelect {
		for bit := range 8 {
			if bits&(1<<bit) != 0 {
				sel.PCRs = append(sel.PCRs, 8*i+bit)
			}
		}
	}
	if err := sel.Validate(); err != nil {
		return sel, nodeclaim.Refuse("quote.selection", fmt.Sprintf("the quote's own selection is wrong: %v", err))
	}
	return sel, nil
}

// search looks for the prefix of the IMA list whose PCR 10, with the event log's other PCRs, hashes to
// the quoted composite, and leaves it in values. It guesses only: quote.Verify decides.
func (b Bundle) search(hash nodeclaim.HashAlg, want []byte, sel nodeclaim.Selection, values map[int][]byte, opt ima.Options) bool {
	var before, after []byte
	quoted10 := false
	for _, i := range sel.PCRs {
		switch {
		case i < ima.PCR:
			before = append(before, values[i]...)
		case i == ima.PCR:
			quoted10 = true
		default:
			after = append(after, values[i]...)
		}
	}
	candidates := [][]byte{nil}
	if quoted10 {
		candidates = ima.Unverified(b.IMALog, sel.Bank, opt)
	}
	for _, c := range candidates {
		h := hash.New()
		h.Write(before)
		h.Write(c)
		h.Write(after)
		if bytes.Equal(h.Sum(nil), want) {
			if quoted10 {
				values[ima.PCR] = c
			}
			return true
		}
	}
	return false
}

func selected(values map[int][]byte, sel nodeclaim.Selection) map[int][]byte {
	out := make(map[int][]byte, len(sel.PCRs))
	for _, i := range sel.PCRs {
		out[i] = values[i]
	}
	return out
}

// replayIMA replays the list; there is no result when PCR 10 was not quoted.
func (b Bundle) replayIMA(pcrs quote.PCRs, opt ima.Options) (*ima.Result, error) {
	quoted := false
	for _, bank := range pcrs.Banks() {
		_, ok := pcrs.Value(bank, ima.PCR)
		quoted = quoted || ok
	}
	if !quoted {
		return nil, nil
	}
	r := ima.NewReplayer(pcrs, opt)
	if _, err := r.Write(b.IMALog); err != nil {
		return nil, err
	}
	if r.Doubtful() {
		if boot, err := eventlog.ReplayBoth(b.EventLog, b.Userspace, pcrs, b.OSExtended...); err == nil {
			r.Booted(boot.Booted)
		}
	}
	res, err := r.Finish()
	if err != nil {
		return nil, err
	}
	return &res, nil
}

// explain says which log is likely at fault when none of their values hash to the quoted composite. The IMA
// list's boot_aggregate, itself unproven here, tells whether both logs agree on PCRs 0 to 9.
func (b Bundle) explain(sel nodeclaim.Selection, values map[int][]byte, opt ima.Options) error {
	no := func(check, format string, args ...any) error {
		return nodeclaim.Refuse(check, fmt.Sprintf(format, args...))
	}
	const end = "so the PCR values that they lead to are not the quoted ones"
	if err := ima.Inspect(b.IMALog, opt); err != nil {
		return err
	}
	claimed, ok := ima.ClaimedAggregate(b.IMALog, opt)
	if !ok {
		return no("quote.composite", "the event log leads to PCR values that the quote does not cover, and there is no IMA list with a boot_aggregate to tell which are wrong: a log was changed, cut or is of another boot")
	}
	h := sel.Bank.New()
	last := 9
	if sel.Bank == nodeclaim.SHA1 {
		last = 7
	}
	for i := range last + 1 {
		h.Write(values[i])
	}
	ours := string(eventlog.NewDigest(sel.Bank, h.Sum(nil)))
	switch {
	case sameAlg(claimed, ours) && claimed != ours:
		return no("eventlog.pcr", "event log: its PCRs 0 to 9 give boot_aggregate %s, the IMA list begins with %s: the event log was changed or cut, or the two logs are of different boots, %s", ours, claimed, end)
	case sameAlg(claimed, ours):
		return no("ima.pcr", "IMA list: no number of its %d entries leads to the quoted PCR values, while the event log agrees with its boot_aggregate: entries were dropped, changed or added, or the list is of an earlier time than the quote, or both logs are of another boot or machine, %s", len(ima.Unverified(b.IMALog, sel.Bank, opt))-1, end)
	default:
		return no("quote.composite", "the logs lead to PCR values that the quote does not cover: one was changed, cut or is of another boot")
	}
}

func sameAlg(a, b string) bool {
	i, j := bytes.IndexByte([]byte(a), ':'), bytes.IndexByte([]byte(b), ':')
	return i > 0 && j > 0 && a[:i] == b[:j]
}
