// Package reference holds an operator's accepted values: named sets of known-good
// measurements, and what a node's proven facts differ from them by.
//
// A [Set] comes from a file ([ParseSet]) or from a golden node ([Capture]); both check it. Its Check
// compares only proven things: facts of a replayed log, quoted PCRs, proven IMA
// entries. What a set pins and the evidence does not prove is a refusal, never a pass; a set
// that pins nothing cannot be built, and the zero Set accepts nothing.
//
// The operator controls sets, the node controls what they are compared with. Where a file's writer
// is not to be trusted by itself, [ParseSigned] takes only sets that a trusted signer signed.
package reference

import (
	"encoding/hex"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/keelson-project/keelson/nodeattestor/eventlog"
	"github.com/keelson-project/keelson/nodeattestor/ima"
	"github.com/keelson-project/keelson/nodeattestor/imasig"
	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
	"github.com/keelson-project/keelson/nodeattestor/quote"
)

// Set is one named set of reference values.
type Set struct {
	name      string
	notBefore time.Time // zero: open
	notAfter  time.Time // zero: open
	boot      boot
	ima       *imaPolicy // nil: IMA is not looked at
	// conditions must all hold, besides everything else.
	conditions []condition
	signedBy   string // key ID of the verified signer, "" where nobody signed
}

// Name is the set's name, which becomes selector "ref:<name>".
func (s Set) Name() string { return s.name }

// ChecksIMA tells whether the set says which files may have been measured.
func (s Set) ChecksIMA() bool { return s.ima != nil }

// SignedBy is the key ID (package dsse) of the trusted signer whose signature over the set verified, ""
// where none was asked for.
func (s Set) SignedBy() string { return s.signedBy }

// Validity is from when and until when, exclusive, the set accepts anything; zero is open.
func (s Set) Validity() (notBefore, notAfter time.Time) { return s.notBefore, s.notAfter }

// WithValidity is the set with another validity, in whole seconds.
func (s Set) WithValidity(notBefore, notAfter time.Time) (Set, error) {
	s.signedBy = ""
	s.notBefore, s.notAfter = wholeSecond(notBefore), wholeSecond(notAfter)
	if !s.notAfter.IsZero() && !s.notBefore.Before(s.notAfter) {
		return Set{}, fmt.Errorf("reference: validity: end %s is not after begin %s", s.notAfter.Format(time.RFC3339), s.notBefore.Format(time.RFC3339))
	}
	return s, nil
}

func wholeSecond(t time.Time) time.Time {
	if t.IsZero() {
		return t
	}
	return t.UTC().Truncate(time.Second)
}

// Bank is the PCR bank that the set's components are of.
func (s Set) Bank() nodeclaim.HashAlg { return s.boot.bank }

// boot has what a measured boot must have been. An empty component is not looked at.
type boot struct {
	bank   nodeclaim.HashAlg
	values values
	pcrs   map[nodeclaim.HashAlg]map[int][][]byte
	// unpinnedKernel says that whoever made the set knows that any kernel passes.
	unpinnedKernel bool
}

// late tells whether the set looks at what runs after the boot loader: by a component or by a condition.
func (s Set) late() bool {
	return slices.ContainsFunc(components, func(c component) bool { return c.late != "" && s.looksAt(c) })
}

// looksAt tells whether the set looks at a component: by a value of its own or by a condition.
func (s Set) looksAt(c component) bool {
	return s.boot.has(c.key) || slices.ContainsFunc(s.conditions, func(cond condition) bool { return c.reads(cond.needs) })
}

// imaPolicy is an allow-list; what it does not name is refused.
type imaPolicy struct {
	files           map[string][]string // path to allowed digests ("sha256:hex")
	ignore          []string            // directories, each with its final slash, under which anything goes
	ignoreFiles     []string            // paths whose content is not looked at
	required        []string            // paths that must have been measured
	keys            []imasig.Key        // who may have signed a file that is not listed
	allowViolations bool
	allowBareNames  bool      // files that the kernel names without a directory, and that are not listed
	book            *ima.Book // of files and required
	vouched         *vouched  // signatures of keys that verified
}

// Evidence is what is compared with a set; all of it is proven.
type Evidence struct {
	Boot eventlog.Boot
	PCRs quote.PCRs
	IMA  *ima.Result // nil: none was proven
	// Measured is what was learned of the list while it streamed; nil where IMA has the entries.
	Measured *Measured
	// Maker is what the EK's certificate says of the TPM; the zero Maker where none vouches for it.
	Maker Maker
	// Tag has the facts of the machine's asset tag; nil where none was verified.
	Tag map[string]string
}

// Facts are what is proven of a bank's PCRs, and whether that bank was quoted.
func (ev Evidence) Facts(bank nodeclaim.HashAlg) (eventlog.Facts, bool) {
	f, ok := ev.Boot.Facts(bank)
	return ev.started(bank, f), ok
}

// started adds what IMA's boot_aggregate proves, where it is over PCRs 8 and 9 of the bank.
func (ev Evidence) started(bank nodeclaim.HashAlg, f eventlog.Facts) eventlog.Facts {
	if ev.IMA != nil && ev.IMA.Aggregated == bank && bank != nodeclaim.SHA1 {
		return f.AsTheKernelStarted()
	}
	return f
}

// Maker is who made a TPM, as the certificate of its EK says (TCG EK Credential Profile 2.x, 3.1.2): Manufacturer is "id:" and
// 8 hex digits of the TCG Vendor ID Registry.
type Maker struct{ Manufacturer, Model, Version string }

// vendor is the manufacturer's ID as the four letters that it stands for, without the spaces or NULs at its end; "" where it is
// no such text.
func (m Maker) vendor() string {
	raw, err := hex.DecodeString(strings.TrimPrefix(m.Manufacturer, "id:"))
	if err != nil {
		return ""
	}
	name := strings.TrimRight(string(raw), " \x00")
	if strings.ContainsFunc(name, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return ""
	}
	return name
}

// namePattern keeps a name usable as a selector and a label value: lower case, as SPIRE's are.
var namePattern = regexp.MustCompile(`^[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?$`)
