package serverconfig

import (
	"crypto"
	"crypto/x509"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"k8s.io/client-go/rest"

	"github.com/keelson-project/keelson/nodeattestor/assettag"
	"github.com/keelson-project/keelson/nodeattestor/dsse"
	"github.com/keelson-project/keelson/nodeattestor/ek"
	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
	"github.com/keelson-project/keelson/nodeattestor/pluginconf"
	"github.com/keelson-project/keelson/nodeattestor/pluginmetrics"
	"github.com/keelson-project/keelson/nodeattestor/reference"
	"github.com/keelson-project/keelson/nodeattestor/verdict"
	"github.com/keelson-project/keelson/nodeattestor/verify"
	"github.com/keelson-project/keelson/spireplugin/watchfile"
)

// hclConfig is the plugin_data block as people write it; the plugin's README.md explains each key.
type hclConfig struct {
	EKMode          string           `hcl:"ek_mode"`
	EKRoots         []string         `hcl:"ek_roots"`
	EKIntermediates []string         `hcl:"ek_intermediates"`
	Inventory       string           `hcl:"inventory"`
	Revoked         string           `hcl:"revoked"`
	References      []string         `hcl:"references"`
	RefSigners      []string         `hcl:"reference_signers"`
	PCRs            map[string][]int `hcl:"pcrs"`
	OSExtendedPCRs  []int            `hcl:"os_extended_pcrs"`
	RequireIMA      *bool            `hcl:"require_ima"`
	IMAPaddedSHA1   bool             `hcl:"ima_padded_sha1"`
	Tag             *hclTag          `hcl:"tag"`
	PCRSelectors    map[string][]int `hcl:"pcr_selectors"`
	AuditLog        string           `hcl:"audit_log"`
	AuditMaxSize    int64            `hcl:"audit_max_bytes"`
	AuditMaxFiles   int              `hcl:"audit_max_files"`
	StateDir        string           `hcl:"state_dir"`
	Kubernetes      *hclKubernetes   `hcl:"kubernetes"`
	VerdictValidFor string           `hcl:"verdict_valid_for"`
	Timeout         string           `hcl:"attestation_timeout"`
	MaxParallel     int              `hcl:"max_parallel"`
	MaxEventLog     int              `hcl:"max_event_log_bytes"`
	MaxIMALog       int64            `hcl:"max_ima_log_bytes"`
	MaxIMAEntries   int              `hcl:"max_ima_entries"`

	Metrics *pluginmetrics.Config `hcl:"metrics"`
}

type hclTag struct {
	Signers  []string `hcl:"signers"`
	Index    string   `hcl:"index"`
	Required *bool    `hcl:"required"`
	Revoked  string   `hcl:"revoked"`
}

type hclKubernetes struct {
	Kubeconfig      string   `hcl:"kubeconfig"`
	InCluster       bool     `hcl:"in_cluster"`
	NodeBinding     string   `hcl:"node_binding"`
	TokenAudience   string   `hcl:"token_audience"`
	ServiceAccounts []string `hcl:"token_service_accounts"`
}

// Config is what the plugin works by: validated, and never changed once made.
type Config struct {
	Unread        []string // files in folders of certificates that are not read
	Text          string   // that it was made from
	TrustDomain   spiffeid.TrustDomain
	Policy        *verify.Policy
	PCRSelectors  []nodeclaim.Selection
	AuditLog      string
	AuditMaxSize  int64
	AuditMaxFiles int
	StateDir      string
	Kube          *rest.Config // nil when no verdicts are written
	Token         verdict.TokenPolicy
	ValidFor      time.Duration
	Timeout       time.Duration
	MaxParallel   int
	Listen        string // address of metrics and health, "" for none
}

// Defaults of optional keys.
const (
	defaultValidFor    = 2 * time.Hour // above half of SPIRE's default agent_ttl of 1 h plus retries
	defaultTimeout     = 2 * time.Minute
	defaultMaxParallel = 64
)

// Read reads the plugin's configuration and every file that it names, by their validity at a time.
// It has no other effect, so Configure and Validate share it. The problems are all of them, and
// with one there is no Config. The sighting is of what was looked at, problems or not.
func Read(text, trustDomain string, now time.Time) (*Config, watchfile.Sighting, *pluginconf.Problems) {
	b := builder{now: now}
	c := b.config(text, trustDomain)
	return c, b.Sighting, b.problems
}

// config builds the Config; nil when there are problems.
func (b *builder) config(text, trustDomain string) *Config {
	var raw hclConfig
	if b.problems = pluginconf.Decode(text, &raw); b.problems.Err() != nil {
		return nil
	}
	c := &Config{Text: text, Policy: &verify.Policy{}, AuditLog: raw.AuditLog, AuditMaxSize: raw.AuditMaxSize,
		AuditMaxFiles: raw.AuditMaxFiles, StateDir: raw.StateDir}
	td, err := spiffeid.TrustDomainFromString(trustDomain)
	if err != nil {
		b.problems.Add("trust_domain", "%v", err)
	}
	c.TrustDomain = td
	b.anchors(&raw, &c.Policy.Anchors)
	c.Policy.Revoked = b.revoked(raw.Revoked)
	c.Policy.References = b.references(&raw)
	c.Policy.Selections = b.selections("pcrs", raw.PCRs)
	c.Policy.OSExtended = raw.OSExtendedPCRs
	c.PCRSelectors = b.selections("pcr_selectors", raw.PCRSelectors)
	c.Policy.IMA = raw.RequireIMA == nil || *raw.RequireIMA
	b.logLimits(&raw, c.Policy)
	c.Policy.IMAOptions.PaddedSHA1 = raw.IMAPaddedSHA1
	b.tag(raw.Tag, &c.Policy.Tag)
	c.Kube = b.kubernetes(raw.Kubernetes)
	c.Policy.RequireNode = raw.Kubernetes != nil
	b.nodeBinding(raw.Kubernetes, c)
	c.ValidFor = b.duration("verdict_valid_for", raw.VerdictValidFor, defaultValidFor)
	c.Timeout = b.duration("attestation_timeout", raw.Timeout, defaultTimeout)
	c.Policy.ChallengeTTL = c.Timeout
	c.MaxParallel = raw.MaxParallel
	c.Listen = raw.Metrics.Address(b.problems)
	b.rest(&raw, c)
	c.Unread = b.unread
	if b.problems.Err() != nil {
		return nil
	}
	if err := c.Policy.Validate(); err != nil {
		b.problems.Add("configuration", "%v", err)
		return nil
	}
	return c
}

type builder struct {
	watchfile.Sighting
	unread   []string // files of folders of certificates whose names say that they are none
	problems *pluginconf.Problems
	now      time.Time
}

// DefaultAuditFiles is how many rotated files of the audit log are kept where the configuration
// says nothing: 2 GiB of files of the default size. A log that is never cut fills the disk, and
// then nobody is let in.
const DefaultAuditFiles = 32

func (b *builder) rest(raw *hclConfig, c *Config) {
	if raw.MaxParallel < 0 {
		b.problems.Add("max_parallel", "%d is negative", raw.MaxParallel)
	}
	if raw.MaxParallel == 0 {
		c.MaxParallel = defaultMaxParallel
	}
	if raw.AuditMaxSize < 0 {
		b.problems.Add("audit_max_bytes", "%d is negative", raw.AuditMaxSize)
	}
	if c.AuditMaxFiles == 0 {
		c.AuditMaxFiles = DefaultAuditFiles
	}
	if raw.AuditMaxFiles < 0 {
		b.problems.Add("audit_max_files", "%d is negative", raw.AuditMaxFiles)
	}
	if raw.AuditLog == "" {
		b.problems.Add("audit_log", "missing; name the file that every decision is appended to")
	}
	if (raw.Kubernetes != nil || raw.StateDir != "") && !watchfile.IsFolder(raw.StateDir) {
		b.problems.Add("state_dir", "%q is not a directory; verdicts that wait for Kubernetes are kept there, or without it the tags' serials", raw.StateDir)
	}
	if raw.Kubernetes != nil && raw.Inventory == "" && c.Policy.Binding != verify.ByToken {
		b.problems.Add("inventory", "missing; with kubernetes, the inventory says which node an EK belongs to")
	}
	for _, s := range c.PCRSelectors {
		i := slices.IndexFunc(c.Policy.Selections, func(q nodeclaim.Selection) bool { return q.Bank == s.Bank })
		for _, pcr := range s.PCRs {
			if i < 0 || !slices.Contains(c.Policy.Selections[i].PCRs, pcr) {
				b.problems.Add("pcr_selectors", "PCR %d of bank %s is not quoted; add it to pcrs", pcr, s.Bank)
			}
		}
	}
}

func (b *builder) anchors(raw *hclConfig, a *ek.Anchors) {
	mode, err := ek.ParseMode(raw.EKMode)
	if err != nil {
		b.problems.Add("ek_mode", "%v", err)
	}
	a.Mode = mode
	a.Roots = b.certificates("ek_roots", raw.EKRoots)
	a.Intermediates = b.certificates("ek_intermediates", raw.EKIntermediates)
	if mode != ek.Inventory && len(a.Roots) == 0 {
		b.problems.Add("ek_roots", "missing; mode %s needs at least one root of a TPM vendor", mode)
	}
	if mode != ek.Certificate && raw.Inventory == "" {
		b.problems.Add("inventory", "missing; mode %s needs one", mode)
	}
	if raw.Inventory == "" {
		return
	}
	if data, ok := b.read("inventory", raw.Inventory); ok {
		if a.Inventory, err = ek.ParseInventory(data); err != nil {
			b.problems.Add("inventory", "%s: %v", raw.Inventory, err)
		}
	}
}

func (b *builder) revoked(path string) map[nodeclaim.EKHash]string {
	if path == "" {
		return nil
	}
	data, ok := b.read("revoked", path)
	if !ok {
		return nil
	}
	out, err := ek.ParseRevoked(data)
	if err != nil {
		b.problems.Add("revoked", "%s: %v", path, err)
	}
	return out
}

// certificates reads files of certificates, and those of directories by their endings.
func (b *builder) certificates(key string, paths []string) []*x509.Certificate {
	var out []*x509.Certificate
	for _, path := range b.expand(key, paths, ek.CertificateFiles...) {
		data, ok := b.read(key, path)
		if !ok {
			continue
		}
		certs, err := ek.ParseCertificates(data)
		if err != nil {
			b.problems.Add(key, "%s: %s", path, strings.TrimPrefix(err.Error(), "ek: "))
		}
		out = append(out, certs...)
	}
	b.noteUnread(paths, ek.CertificateFiles...)
	return out
}

func (b *builder) references(raw *hclConfig) reference.Sets {
	parse := reference.ParseSet
	if b.problems.Has("reference_signers") { // without a single key in it, nothing is trusted
		signers := b.signers("reference_signers", raw.RefSigners)
		parse = func(data []byte) (reference.Set, error) { return reference.ParseSigned(data, signers) }
	}
	var sets []reference.Set
	for _, path := range b.expand("references", raw.References, ".yaml", ".yml", ".json") {
		data, ok := b.read("references", path)
		if !ok {
			continue
		}
		set, err := parse(data)
		if err != nil {
			b.problems.Add("references", "%s: %v", path, err)
			continue
		}
		sets = append(sets, set)
	}
	if len(sets) == 0 {
		b.problems.Add("references", "no reference set; make one with keelson reference capture")
	}
	all, err := reference.NewSets(sets...)
	if err != nil {
		b.problems.Add("references", "%v", err)
	}
	return all
}

// selections reads a block of bank = [indices], strongest bank last, as verify.Policy wants it.
func (b *builder) selections(key string, banks map[string][]int) []nodeclaim.Selection {
	var out []nodeclaim.Selection
	for name, pcrs := range banks {
		alg, err := nodeclaim.ParseHashAlg(name)
		if err != nil {
			b.problems.Add(key+"."+name, "%v", err)
			continue
		}
		s := nodeclaim.Selection{Bank: alg, PCRs: slices.Clone(pcrs)}
		slices.Sort(s.PCRs)
		if err := s.Validate(); err != nil {
			b.problems.Add(key+"."+name, "%v", err)
			continue
		}
		out = append(out, s)
	}
	slices.SortFunc(out, func(x, y nodeclaim.Selection) int { return int(x.Bank) - int(y.Bank) })
	if key == "pcrs" && len(out) == 0 {
		b.problems.Add("pcrs", "missing; a good start is pcrs { sha256 = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14] }")
	}
	return out
}

func (b *builder) tag(raw *hclTag, out *verify.TagPolicy) {
	if raw == nil {
		return
	}
	out.Required = raw.Required == nil || *raw.Required
	out.Index = assettag.DefaultIndex
	if raw.Index != "" {
		n, err := strconv.ParseUint(raw.Index, 0, 32)
		if err != nil {
			b.problems.Add("tag.index", "%q is not an NV index such as 0x01800100", raw.Index)
		}
		out.Index = uint32(n)
	}
	out.Signers = b.signers("tag.signers", raw.Signers)
	if raw.Revoked == "" {
		return
	}
	if data, ok := b.read("tag.revoked", raw.Revoked); ok {
		var err error
		if out.Revoked, err = assettag.ParseRevocations(data); err != nil {
			b.problems.Add("tag.revoked", "%s: %v", raw.Revoked, err)
		}
	}
}

// signers reads the public keys that may sign; none is a problem.
func (b *builder) signers(key string, paths []string) []crypto.PublicKey {
	var out []crypto.PublicKey
	for _, path := range b.expand(key, paths, ".pem", ".pub") {
		data, ok := b.read(key, path)
		if !ok {
			continue
		}
		keys, err := dsse.ParseSigners(data)
		if err != nil {
			b.problems.Add(key, "%s: %v", path, err)
		}
		out = append(out, keys...)
	}
	if len(out) == 0 {
		b.problems.Add(key, "missing; name the PEM files of the public keys that may sign")
	}
	return out
}

func (b *builder) duration(key, text string, otherwise time.Duration) time.Duration {
	if text == "" {
		return otherwise
	}
	d, err := time.ParseDuration(text)
	if err != nil || d <= 0 {
		b.problems.Add(key, "%q is not a positive duration such as 10m", text)
	}
	return d
}
