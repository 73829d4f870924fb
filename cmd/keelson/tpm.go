package main

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/keelson-project/keelson/nodeattestor/ak"
	"github.com/keelson-project/keelson/nodeattestor/ek"
	"github.com/keelson-project/keelson/nodeattestor/tpmdev"
)

const tpmInfoHelp = `Say what a TPM is and what Keelson finds in it: maker, firmware, PCR banks, endorsement keys with their
certificates, the agent's attestation key, the asset tag, and what keeps it from working (lockout, hierarchies that are off).

It changes nothing in the TPM. Nothing here is proven: servers believe certificates and activated credentials only.`

type tpmInfoFlags struct {
	tpmFlags
	dataDir, index, output string
}

func addTPM(root *cobra.Command) {
	var f tpmInfoFlags
	info := &cobra.Command{
		Use: "info --tpm PATH", Short: "Say what this machine's TPM is and holds", Long: tpmInfoHelp, Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return tpmInfo(c.Context(), c.OutOrStdout(), f) },
	}
	f.register(info, defaultTPM)
	info.Flags().StringVar(&f.dataDir, "data-dir", "", "the agent's data_dir, whose attestation key is looked at")
	indexFlag(info, &f.index)
	outputFlag(info, &f.output)
	tpm := group("tpm", "Look at this machine's TPM")
	tpm.AddCommand(info)
	root.AddCommand(tpm)
}

// tpmReport is what tpm info prints; as JSON, its keys are a contract.
type tpmReport struct {
	tpmdev.Info
	Banks []string      `json:"banks"`
	EKs   []tpmReportEK `json:"eks"`
	AK    *tpmReportAK  `json:"ak"` // null without --data-dir
	Tag   tpmReportTag  `json:"tag"`
	// Unusable says which NV indices hold an EK certificate that cannot be used, and why.
	Unusable []string `json:"unusableCertificates"`
	Notes    []string `json:"notes"` // what keeps the TPM from working, and what to do
}

type tpmReportEK struct {
	Template    string         `json:"template"` // of the TCG EK Credential Profile
	Hash        string         `json:"hash"`
	Certificate *tpmReportCert `json:"certificate"` // null where the TPM has none for this key
}

type tpmReportCert struct {
	Issuer    string    `json:"issuer"`
	Serial    string    `json:"serial"` // hex
	NotBefore time.Time `json:"notBefore"`
	NotAfter  time.Time `json:"notAfter"`
	Chain     int       `json:"chain"` // certificates of issuers that the TPM keeps
}

type tpmReportAK struct {
	State string `json:"state"` // "usable", "none" or what is wrong
	Type  string `json:"type,omitempty"`
	Name  string `json:"name,omitempty"` // TPM name, hex
}

type tpmReportTag struct {
	Index      string   `json:"index"`
	Present    bool     `json:"present"`
	Right      bool     `json:"right"` // written, locked, and with a tag's attributes
	Attributes []string `json:"attributes"`
	Contents   string   `json:"contents"` // hex
}

func tpmInfo(ctx context.Context, out io.Writer, f tpmInfoFlags) (err error) {
	if f.output != "text" && f.output != "json" {
		return fmt.Errorf("output %q is neither text nor json", f.output)
	}
	index, err := parseIndex(f.index)
	if err != nil {
		return err
	}
	dev, err := f.open(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dev.Close()) }()
	r := tpmReport{Banks: []string{}, EKs: []tpmReportEK{}, Unusable: []string{}, Notes: []string{}}
	if r.Info, err = dev.Info(ctx); err != nil {
		return err
	}
	r.note()
	banks, err := dev.Banks(ctx)
	if err != nil {
		return err
	}
	for _, b := range banks {
		r.Banks = append(r.Banks, b.String())
	}
	if err := r.endorsements(ctx, dev); err != nil {
		return err
	}
	if err := r.attestationKey(ctx, dev, f.dataDir); err != nil {
		return err
	}
	if err := r.tag(ctx, dev, index); err != nil {
		return err
	}
	if f.output == "json" {
		return writeJSON(out, r)
	}
	return r.text(out)
}

// note says what keeps the TPM from working.
func (r *tpmReport) note() {
	for _, n := range []struct {
		wrong bool
		text  string
	}{
		{r.Lockout.InLockout, fmt.Sprintf("the TPM is in lockout; one failure is forgotten every %d s, or reset it with the lockout authorisation", r.Lockout.Interval)},
		{!r.EndorsementOn, "the endorsement hierarchy is off: no attestation; enable it in the firmware's setup and reboot"},
		{!r.StorageEnabled, "the owner's hierarchy is off: no asset tag can be provisioned; enable it in the firmware's setup and reboot"},
		{r.EndorsementAuth, "the endorsement hierarchy has an authorisation, which the agent is not given; clear it"},
	} {
		if n.wrong {
			r.Notes = append(r.Notes, n.text)
		}
	}
}

func (r *tpmReport) endorsements(ctx context.Context, dev *tpmdev.Device) error {
	if !r.EndorsementOn || r.EndorsementAuth {
		return nil // noted
	}
	all, err := dev.Endorsements(ctx)
	if err != nil {
		return err
	}
	for _, e := range all {
		shown := tpmReportEK{Template: e.Template, Hash: e.Hash.String()}
		if len(e.Certs) > 0 {
			shown.Certificate = &tpmReportCert{Issuer: "not readable", Chain: len(e.Certs) - 1}
			if c, err := ek.ParseCertificate(e.Certs[0]); err == nil {
				shown.Certificate.Issuer, shown.Certificate.Serial = c.Issuer.String(), c.SerialNumber.Text(16)
				shown.Certificate.NotBefore, shown.Certificate.NotAfter = c.NotBefore, c.NotAfter
			}
		}
		r.EKs = append(r.EKs, shown)
	}
	r.Unusable = append(r.Unusable, dev.Unusable()...)
	return nil
}

func (r *tpmReport) attestationKey(ctx context.Context, dev *tpmdev.Device, dir string) error {
	if dir == "" {
		return nil
	}
	r.AK = &tpmReportAK{State: "usable"}
	k, err := dev.KeptAK(ctx, dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		r.AK.State = "none"
		return nil
	case err != nil:
		r.AK.State = err.Error()
		return nil //nolint:nilerr // shown
	}
	key, err := ak.Parse(k.Public)
	if err != nil {
		return err
	}
	r.AK.Type, r.AK.Name = string(k.Type()), hex.EncodeToString(key.Name())
	return nil
}

func (r *tpmReport) tag(ctx context.Context, dev *tpmdev.Device, index uint32) error {
	r.Tag = tpmReportTag{Index: fmt.Sprintf("0x%08x", index), Attributes: []string{}}
	held, err := dev.Tag(ctx, index)
	if errors.Is(err, tpmdev.ErrNoTag) {
		return nil
	}
	if err != nil {
		return err
	}
	r.Tag.Present, r.Tag.Right, r.Tag.Attributes, r.Tag.Contents = true, held.Right, held.Attributes, hex.EncodeToString(held.Contents)
	return nil
}

func (r tpmReport) text(out io.Writer) error {
	var l lines
	l.add("TPM 2.0, revision %s", r.Revision)
	l.fact("manufacturer", strings.TrimSpace(r.Manufacturer+" "+r.Vendor))
	l.fact("firmware", r.Firmware)
	l.fact("PCR banks", strings.Join(r.Banks, ", "))
	l.fact("keys", strings.Join(r.Keys, ", "))
	l.fact("authorisations set", fmt.Sprintf("owner %s, endorsement %s, lockout %s", yes(r.OwnerAuth), yes(r.EndorsementAuth), yes(r.LockoutAuth)))
	l.fact("hierarchies on", fmt.Sprintf("owner %s, endorsement %s", yes(r.StorageEnabled), yes(r.EndorsementOn)))
	l.fact("locked out", fmt.Sprintf("%s, %d of %d failures, one forgotten every %d s", yes(r.Lockout.InLockout), r.Lockout.Failures, r.Lockout.MaxFailures, r.Lockout.Interval))
	l.fact("clock", fmt.Sprintf("up %s, resets %d, restarts %d, safe %s", r.Clock.Time, r.Clock.Resets, r.Clock.Restarts, yes(r.Clock.Safe)))
	for _, e := range r.EKs {
		l.add("EK %s (template %s)", e.Hash, e.Template)
		if e.Certificate == nil {
			l.fact("certificate", "none that can be used; list this hash in the inventory")
			continue
		}
		c := e.Certificate
		l.fact("certificate", fmt.Sprintf("serial %s of %s, %d of its issuers' kept", c.Serial, c.Issuer, c.Chain))
		l.fact("valid", stamp(c.NotBefore)+" to "+stamp(c.NotAfter))
	}
	l.list("unusable certificate: ", r.Unusable)
	if r.AK != nil {
		l.add("attestation key: %s", r.AK.State)
		l.fact("type", r.AK.Type)
		l.fact("name", r.AK.Name)
	}
	switch {
	case !r.Tag.Present:
		l.add("asset tag: none at NV index %s", r.Tag.Index)
	case r.Tag.Right:
		l.add("asset tag: NV index %s holds %s, locked", r.Tag.Index, r.Tag.Contents)
	default:
		l.add("asset tag: NV index %s is not as a server accepts it (%s); provision it anew", r.Tag.Index, strings.Join(r.Tag.Attributes, " "))
	}
	l.list("note: ", r.Notes)
	return l.write(out)
}
