package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/spf13/cobra"

	"github.com/keelson-project/keelson/workloadattestor/image"
)

const imageHelp = `Judges an image by the rules of the workload attestor and policy-sync, with the keys and identity given here.
Their mirrors, certificates of registries, signature repositories and lists of digests are not looked at.

REF is a registry reference, or with --layout a name or digest in that OCI layout. Without --digest-running, everything that a
runtime could start from REF has to be accepted by one of the keys or by the identity, or an index on the way to it: containerd
and CRI-O choose differently from an index. Without --platform that is for any node.

PATTERN is the exact text, or, where it has one of *+?()[]{}|^$\, a regular expression (RE2) that has to match all of it: the "+" of
an email address is written \+. Credentials come from Docker's configuration (~/.docker/config.json). A verifier is named after
its key's file.

As JSON: {"verdict": "accepted" or "refused", "manifests": [digest...], "signedBy": [{"verifier", "format", "subject"}],
"refusals": [{"check", "reason"}]}. With exit code 2 there is none.

Exit code 0: accepted. 1: refused. 2: wrong use, or something could not be read or
asked, or not within --timeout.`

type imageFlags struct {
	layout      string
	keys        []string
	trustedRoot string
	identity    string
	issuer      string
	running     string
	platform    string
	insecure    bool
	output      string
	timeout     time.Duration
}

func addImage(root *cobra.Command) {
	images := group("image", "Judge container images")
	var f imageFlags
	verify := &cobra.Command{
		Use: "verify REF", Short: "Tell whether an image is accepted, and why not", Long: imageHelp, Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return verifyImage(c.Context(), c.OutOrStdout(), args[0], f)
		},
	}
	flags := verify.Flags()
	flags.StringVar(&f.layout, "layout", "", "folder in OCI image layout that holds the image and its signatures")
	flags.StringArrayVar(&f.keys, "key", nil, "PEM file with a public key that may have signed; may be repeated")
	flags.StringVar(&f.trustedRoot, "trusted-root", "", "trusted_root.json of the Sigstore instance that issued the signer's certificate")
	flags.StringVar(&f.identity, "identity", "", "PATTERN of the certificate's subject, an email address or URI")
	flags.StringVar(&f.issuer, "issuer", "", "PATTERN of the certificate's OIDC issuer")
	flags.StringVar(&f.running, "digest-running", "", "sha256:… of the config, manifest or index that a runtime reports to run")
	flags.StringVar(&f.platform, "platform", "", "os/arch[/variant] of the node; any node without it")
	flags.BoolVar(&f.insecure, "insecure", false, "ask the registry without TLS")
	flags.DurationVar(&f.timeout, "timeout", time.Minute, "bound on the whole work")
	flags.StringVarP(&f.output, "output", "o", "text", "text or json")
	images.AddCommand(verify)
	root.AddCommand(images)
}

// imageReport is what image verify prints; as JSON, its keys are a contract.
type imageReport struct {
	Verdict   string         `json:"verdict"` // "accepted" or "refused"
	Manifests []string       `json:"manifests"`
	SignedBy  []imageSigner  `json:"signedBy"`
	Refusals  []imageRefusal `json:"refusals"`
}

type imageSigner struct {
	Verifier string `json:"verifier"`
	Format   string `json:"format"`
	Subject  string `json:"subject"`
}

type imageRefusal struct {
	Check  string `json:"check"`
	Reason string `json:"reason"`
}

func verifyImage(ctx context.Context, out io.Writer, ref string, f imageFlags) error {
	if f.output != "text" && f.output != "json" {
		return fmt.Errorf("output %q: want text or json", f.output)
	}
	if f.timeout <= 0 {
		return fmt.Errorf("--timeout %s: there would be no time to judge: give a positive duration, such as 1m", f.timeout)
	}
	config, err := f.config(ref)
	if err != nil {
		return err
	}
	checker, err := image.New(config)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, f.timeout)
	defer cancel()
	root, err := checker.Resolve(ctx, ref)
	if err != nil {
		return err
	}
	running := image.Running{ID: f.running, Ref: root}
	if f.layout != "" {
		running.LayoutEntry = root
	}
	result, err := checker.Check(ctx, running)
	if image.Unknown(err) {
		return err
	}
	if err != nil {
		result = image.Result{} // an error refuses, whatever was found before it
	}
	report, unknown := reportImage(result)
	if err != nil {
		report.Refusals = append(report.Refusals, imageRefusal{Check: "image", Reason: err.Error()})
	}
	if report.Verdict != "accepted" && ctx.Err() != nil {
		return fmt.Errorf("image: not judged within --timeout %s, so neither accepted nor refused: %w", f.timeout, ctx.Err())
	}
	if report.Verdict != "accepted" && unknown != nil {
		return unknown
	}
	if err := report.write(out, f.output); err != nil {
		return err
	}
	if report.Verdict != "accepted" {
		return refused(errors.New("image refused"))
	}
	return nil
}

// config is the same configuration that the attestor would have for this one image.
func (f imageFlags) config(ref string) (image.Config, error) {
	c := image.Config{Now: time.Now, Timeout: f.timeout, Keychain: authn.DefaultKeychain}
	if f.layout != "" {
		c.Layouts = []string{f.layout}
	} else {
		parsed, err := name.ParseReference(ref)
		if err != nil {
			return c, fmt.Errorf("%q is no image reference: %w", ref, err)
		}
		host := parsed.Context().RegistryStr()
		if c.Registries = []string{host}; f.insecure {
			c.Registries, c.InsecureRegistries = nil, []string{host}
		}
	}
	if f.running != "" && !sha256Digest.MatchString(f.running) {
		return c, fmt.Errorf("--digest-running %q: want sha256: and 64 lower-case hex digits", f.running)
	}
	if f.platform != "" {
		parts := strings.Split(f.platform, "/")
		if len(parts) < 2 || len(parts) > 3 || slices.Contains(parts, "") || f.platform != strings.ToLower(f.platform) {
			return c, fmt.Errorf("--platform %q: want os/arch or os/arch/variant in lower case, such as linux/amd64", f.platform)
		}
		c.Platform = image.Platform{OS: parts[0], Architecture: parts[1], Variant: strings.Join(parts[2:], "")}
	}
	var err error
	c.Verifiers, err = f.verifiers()
	return c, err
}

var sha256Digest = regexp.MustCompile(`^sha256:[0-9a-f]{64}$`)

func (f imageFlags) verifiers() ([]image.Verifier, error) {
	var out []image.Verifier
	taken := map[string]bool{}
	for _, path := range f.keys {
		pem, err := readFile(path)
		if err != nil {
			return nil, err
		}
		v, err := image.NewKeyVerifier(verifierName(path, taken), pem)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		out = append(out, v)
	}
	given := 0
	for _, text := range []string{f.trustedRoot, f.identity, f.issuer} {
		if text != "" {
			given++
		}
	}
	switch {
	case given == 0 && len(out) == 0:
		return nil, errors.New("nothing to judge by: give --key, or --trusted-root with --identity and --issuer")
	case given == 0:
		return out, nil
	case given < 3:
		return nil, errors.New("--trusted-root, --identity and --issuer belong together")
	}
	raw, err := readFile(f.trustedRoot)
	if err != nil {
		return nil, err
	}
	k := image.Keyless{TrustedRoot: raw}
	k.Subject, k.SubjectPattern = pattern(f.identity)
	k.Issuer, k.IssuerPattern = pattern(f.issuer)
	v, err := image.NewKeylessVerifier(verifierName("keyless", taken), k)
	if err != nil {
		return nil, fmt.Errorf("--trusted-root %s, --identity, --issuer: %w", f.trustedRoot, err)
	}
	return append(out, v), nil
}

// pattern tells exact text from a regular expression. A dot alone makes none: names of hosts have dots.
func pattern(text string) (exact, expression string) {
	if strings.ContainsAny(text, `*+?()[]{}|^$\`) {
		return "", text
	}
	return text, ""
}

var notInLabels = regexp.MustCompile(`[^a-z0-9]+`)

// verifierName makes a DNS label of a file's name that no other verifier has.
func verifierName(path string, taken map[string]bool) string {
	base := strings.ToLower(strings.TrimSuffix(filepath.Base(path), filepath.Ext(path)))
	label := strings.Trim(notInLabels.ReplaceAllString(base, "-"), "-")
	if label = strings.Trim(label[:min(len(label), 50)], "-"); label == "" {
		label = "key"
	}
	out := label
	for i := 2; taken[out]; i++ {
		out = fmt.Sprintf("%s-%d", label, i)
	}
	taken[out] = true
	return out
}

// reportImage makes the report. An image that is not accepted because something could not be asked is not refused: then the
// second result says what.
func reportImage(result image.Result) (imageReport, error) {
	r := imageReport{Verdict: "refused", Manifests: []string{}, SignedBy: []imageSigner{}, Refusals: []imageRefusal{}}
	for _, m := range result.Manifests {
		r.Manifests = append(r.Manifests, m.String())
	}
	r.Manifests = append(r.Manifests, result.Unread...)
	for _, s := range result.Signatures {
		r.SignedBy = append(r.SignedBy, imageSigner(s))
	}
	if len(result.SignedBy) > 0 {
		r.Verdict = "accepted"
		return r, nil
	}
	var unknown error
	for _, failure := range result.Failures {
		r.Refusals = append(r.Refusals, imageRefusal{Check: "signed-by:" + failure.Verifier, Reason: failure.Reason.Error()})
		if failure.Unknown {
			unknown = failure.Reason
		}
	}
	return r, unknown
}

func (r imageReport) write(out io.Writer, form string) error {
	var b bytes.Buffer
	if form == "json" {
		encoder := json.NewEncoder(&b)
		encoder.SetEscapeHTML(false)
		encoder.SetIndent("", "  ")
		if err := encoder.Encode(r); err != nil {
			return err
		}
		_, err := out.Write(b.Bytes())
		return err
	}
	fmt.Fprintln(&b, r.Verdict)
	for _, m := range r.Manifests {
		fmt.Fprintln(&b, "manifest", m)
	}
	for _, s := range r.SignedBy {
		fmt.Fprintf(&b, "signed by %s (%s, %s)\n", s.Verifier, s.Format, s.Subject)
	}
	for _, refusal := range r.Refusals {
		fmt.Fprintf(&b, "%s: %s\n", refusal.Check, refusal.Reason)
	}
	_, err := out.Write(b.Bytes())
	return err
}

// readFile reads a small file.
func readFile(path string) (raw []byte, err error) {
	const limit = 1 << 20
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	raw, err = io.ReadAll(io.LimitReader(file, limit+1))
	if err == nil && len(raw) > limit {
		return nil, fmt.Errorf("%s is larger than %d bytes", path, limit)
	}
	return raw, err
}
