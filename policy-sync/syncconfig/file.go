package syncconfig

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
	"github.com/keelson-project/keelson/policy-sync/snapshot"
	"github.com/keelson-project/keelson/workloadattestor/image"
	"github.com/keelson-project/keelson/workloadattestor/workloadclaim"
)

// The file as it is written.
type file struct {
	Kubeconfig                  string         `yaml:"kubeconfig"`
	TrustDomain                 string         `yaml:"trustDomain"`
	ClusterName                 string         `yaml:"clusterName"`
	X509SVIDTTL                 time.Duration  `yaml:"x509SVIDTTL"`
	SPIRE                       spireFile      `yaml:"spire"`
	Calico                      Presence       `yaml:"calico"`
	Istio                       Presence       `yaml:"istio"`
	TierOrder                   float64        `yaml:"tierOrder"`
	MaxHold                     time.Duration  `yaml:"maxHold"`
	PendingGrace                *time.Duration `yaml:"pendingGrace"`
	MaxDeletePercent            int            `yaml:"maxDeletePercent"`
	Taint                       bool           `yaml:"taint"`
	TaintExisting               bool           `yaml:"taintExisting"`
	RefuseSharedServiceAccounts bool           `yaml:"refuseSharedServiceAccounts"`
	AllowedHostPaths            []string       `yaml:"allowedHostPaths"`
	WidestPodCIDR               widestFile     `yaml:"widestPodCIDR"`
	DNS                         serviceFile    `yaml:"dns"`
	MoreDNS                     []serviceFile  `yaml:"moreDNS"`
	DNSNets                     []string       `yaml:"dnsNets"`
	DNSPorts                    []int32        `yaml:"dnsPorts"`
	Istiod                      serviceFile    `yaml:"istiod"`
	IstioRootNamespace          string         `yaml:"istioRootNamespace"`
	Images                      imagesFile     `yaml:"images"`
	Listen                      listenFile     `yaml:"listen"`
	LeaderElection              leaderFile     `yaml:"leaderElection"`
	Resync                      time.Duration  `yaml:"resync"`
	Debounce                    time.Duration  `yaml:"debounce"`
}

type spireFile struct {
	Socket      string        `yaml:"socket"`
	Address     string        `yaml:"address"`
	WorkloadAPI string        `yaml:"workloadAPI"`
	Timeout     time.Duration `yaml:"timeout"`
	// AdminNodes name the machines that may hold policy-sync's own identity, OwnID says which that is over the server's socket.
	AdminNodes          []string `yaml:"adminNodes"`
	OwnID               string   `yaml:"ownID"`
	MaxEntries          int      `yaml:"maxEntries"`
	MaxNamespaceEntries int      `yaml:"maxNamespaceEntries"`
	MaxRead             int      `yaml:"maxRead"`
}

// widestFile is how wide a node's pod CIDR may be, as lengths of prefixes.
type widestFile struct {
	IPv4 int `yaml:"ipv4"`
	IPv6 int `yaml:"ipv6"`
}

type serviceFile struct {
	Namespace string `yaml:"namespace"`
	Label     string `yaml:"label"`
	Value     string `yaml:"value"`
}

type imagesFile struct {
	Registries          []string            `yaml:"registries"`
	InsecureRegistries  []string            `yaml:"insecureRegistries"`
	OCILayouts          []string            `yaml:"ociLayouts"`
	Mirrors             map[string][]string `yaml:"mirrors"`
	RegistryCAs         map[string]string   `yaml:"registryCAs"` // paths of PEM files
	RedirectHosts       []string            `yaml:"redirectHosts"`
	SignatureRepository string              `yaml:"signatureRepository"`
	RegistryAuth        string              `yaml:"registryAuth"` // path of a file in the form of ~/.docker/config.json
	CredentialProviders providersFile       `yaml:"credentialProviders"`
	PullSecrets         bool                `yaml:"pullSecrets"`
	Namespaces          map[string]ruleFile `yaml:"namespaces"`
	Platform            platformFile        `yaml:"platform"`
	Recheck             time.Duration       `yaml:"recheck"`
	TTL                 time.Duration       `yaml:"ttl"`
	FailureTTL          time.Duration       `yaml:"failureTTL"`
	Timeout             time.Duration       `yaml:"timeout"`
	Verifiers           []verifierFile      `yaml:"verifiers"`
}

type providersFile struct {
	Config string `yaml:"config"` // path of a CredentialProviderConfig
	BinDir string `yaml:"binDir"`
}

type ruleFile struct {
	Registries []string `yaml:"registries"`
	Verifiers  []string `yaml:"verifiers"`
}

type platformFile struct {
	OS           string `yaml:"os"`
	Architecture string `yaml:"architecture"`
	Variant      string `yaml:"variant"`
}

type verifierFile struct {
	Name      string       `yaml:"name"`
	PublicKey string       `yaml:"publicKey"` // path of a PEM file
	Keyless   *keylessFile `yaml:"keyless"`
	Manifests []string     `yaml:"manifests"`
	Indexes   []string     `yaml:"indexes"`
	Configs   []string     `yaml:"configs"`
}

type keylessFile struct {
	Issuer         string `yaml:"issuer"`
	IssuerPattern  string `yaml:"issuerPattern"`
	Subject        string `yaml:"subject"`
	SubjectPattern string `yaml:"subjectPattern"`
	TrustedRoot    string `yaml:"trustedRoot"` // path of a trusted_root.json
}

type listenFile struct {
	Metrics string `yaml:"metrics"`
	Health  string `yaml:"health"`
}

type leaderFile struct {
	Enabled       bool          `yaml:"enabled"`
	Namespace     string        `yaml:"namespace"`
	Name          string        `yaml:"name"`
	LeaseDuration time.Duration `yaml:"leaseDuration"`
}

// config checks everything and goes on after a problem.
func (f file) config(p *problems) Config {
	c := Config{
		Kubeconfig: f.Kubeconfig, Calico: f.Calico, Istio: f.Istio, Metrics: f.Listen.Metrics, Health: f.Listen.Health,
		LeaderElection: LeaderElection(f.LeaderElection), Resync: f.Resync, Debounce: f.Debounce,
		Snapshot: snapshot.Config{TrustDomain: f.TrustDomain, X509SVIDTTL: f.X509SVIDTTL, MaxHold: f.MaxHold, Taint: f.Taint, TaintExisting: f.TaintExisting,
			RefuseSharedServiceAccounts: f.RefuseSharedServiceAccounts, TierOrder: f.TierOrder, AllowedHostPaths: f.AllowedHostPaths,
			DNS: snapshot.Service(f.DNS), Istiod: snapshot.Service(f.Istiod), DNSNets: f.DNSNets, DNSPorts: f.DNSPorts,
			IstioRootNamespace: f.IstioRootNamespace, MaxDeletePercent: f.MaxDeletePercent,
			ClusterName: f.ClusterName, OwnID: f.SPIRE.OwnID, AdminNodes: f.SPIRE.AdminNodes,
			WidestPodCIDR4: f.WidestPodCIDR.IPv4, WidestPodCIDR6: f.WidestPodCIDR.IPv6,
			MaxEntries: f.SPIRE.MaxEntries, MaxNamespaceEntries: f.SPIRE.MaxNamespaceEntries},
		SPIRE:  f.spire(p),
		Images: f.Images.config(p),
	}
	c.Snapshot.ImageOwners = f.Images.owners()
	for _, s := range f.MoreDNS {
		c.Snapshot.MoreDNS = append(c.Snapshot.MoreDNS, snapshot.Service(s))
	}
	if f.Kubeconfig != "" {
		p.exists("kubeconfig", f.Kubeconfig)
	}
	for key, presence := range map[string]Presence{"calico": f.Calico, "istio": f.Istio} {
		if presence != Required && presence != Optional && presence != Off {
			p.at(key, "%q is neither %s, %s nor %s", presence, Required, Optional, Off)
		}
	}
	if f.PendingGrace != nil {
		p.between("pendingGrace", *f.PendingGrace, 0, snapshot.MaxPendingGrace)
		if c.Snapshot.PendingGrace = *f.PendingGrace; *f.PendingGrace == 0 {
			c.Snapshot.PendingGrace = snapshot.NoPendingGrace
		}
	}
	p.between("resync", f.Resync, time.Second, time.Hour)
	p.between("debounce", f.Debounce, 0, time.Minute)
	p.listen("listen.metrics", f.Listen.Metrics)
	p.listen("listen.health", f.Listen.Health)
	if f.LeaderElection.Enabled {
		p.between("leaderElection.leaseDuration", f.LeaderElection.LeaseDuration, 2*time.Second, 10*time.Minute)
		if f.LeaderElection.Namespace == "" || f.LeaderElection.Name == "" {
			p.at("leaderElection", "a lease needs a namespace and a name")
		}
		if name := f.LeaderElection.Name; name != "" && name != v1alpha1.LeaseName {
			p.at("leaderElection.name", "%.63q is not %s, the only lease that policy-sync's roles let it write: it would never lead", name, v1alpha1.LeaseName)
		}
	}
	if f.TaintExisting && !f.Taint {
		p.at("taintExisting", "nodes that were there before are tainted only where taint is true")
	}
	p.snapshot(c.Snapshot)
	return c
}

// keys are the keys that the pure part's complaints are about, by how a complaint starts.
var keys = []struct{ start, key string }{
	{"trust domain", "trustDomain"}, {"X.509-SVID", "x509SVIDTTL"}, {"brake", "maxHold"}, {"tier order", "tierOrder"},
	{"largest share", "maxDeletePercent"}, {"service DNS", "dns"}, {"DNS service", "moreDNS"}, {"DNS address", "dnsNets"}, {"DNS block", "dnsNets"}, {"DNS port", "dnsPorts"},
	{"Istio's root namespace", "istioRootNamespace"}, {"service istiod", "istiod"},
	{"allowed host path", "allowedHostPaths"}, {"cluster name", "clusterName"}, {"own ID", "spire.ownID"},
	{"widest pod CIDRs", "widestPodCIDR"}, {"admin node", "spire.adminNodes"}, {"largest number of entries", "spire.maxEntries"},
}

// snapshot reports what the pure part has against its share of the configuration, at the line of the key it means.
func (p *problems) snapshot(c snapshot.Config) {
	err := c.Validate()
	if err == nil {
		return
	}
	for _, text := range strings.Split(err.Error(), "\n") {
		text = strings.TrimPrefix(text, "snapshot: configuration: ")
		key := ""
		for _, k := range keys {
			if strings.HasPrefix(text, k.start) {
				key = k.key
			}
		}
		p.at(key, "%s", text)
	}
}

// leastRead is the least bound on what is read of a SPIRE server: the default bound on our own entries.
const leastRead = snapshot.DefaultMaxEntries

func (f file) spire(p *problems) SPIRE {
	out := SPIRE{Socket: f.SPIRE.Socket, Address: f.SPIRE.Address, WorkloadAPI: f.SPIRE.WorkloadAPI, Timeout: f.SPIRE.Timeout, MaxRead: f.SPIRE.MaxRead}
	out.TrustDomain, _ = spiffeid.TrustDomainFromString(f.TrustDomain) // reported with the rest of snapshot.Config
	switch {
	case (f.SPIRE.Socket == "") == (f.SPIRE.Address == ""):
		p.at("spire", "give either socket (the server's admin socket) or address (host:port)")
	case f.SPIRE.Socket != "" && !filepath.IsAbs(f.SPIRE.Socket):
		p.at("spire.socket", "%q is not an absolute path", f.SPIRE.Socket)
	case f.SPIRE.Address != "":
		if _, _, err := net.SplitHostPort(f.SPIRE.Address); err != nil {
			p.at("spire.address", "%v", err)
		}
		if !strings.HasPrefix(f.SPIRE.WorkloadAPI, "unix:") && !strings.HasPrefix(f.SPIRE.WorkloadAPI, "tcp:") {
			p.at("spire.workloadAPI", "an address needs the Workload API (unix:///…), from which policy-sync's own SVID comes")
		}
	}
	if f.SPIRE.MaxRead < leastRead {
		p.at("spire.maxRead", "%d is less than %d", f.SPIRE.MaxRead, leastRead)
	}
	p.between("spire.timeout", f.SPIRE.Timeout, 100*time.Millisecond, time.Minute)
	return out
}

func (f imagesFile) config(p *problems) Images {
	out := Images{Recheck: f.Recheck, Checker: image.Config{Registries: f.Registries, InsecureRegistries: f.InsecureRegistries,
		Layouts: f.OCILayouts, Platform: image.Platform(f.Platform), TTL: f.TTL, FailureTTL: f.FailureTTL, Timeout: f.Timeout}}
	cas, err := image.ReadCAs(f.RegistryCAs)
	if err != nil {
		p.at("images.registryCAs", "%v", err)
	}
	out.Checker.Mirrors, out.Checker.RegistryCAs, out.Checker.RedirectHosts = f.Mirrors, cas, f.RedirectHosts
	if f.SignatureRepository != "" {
		out.Checker.SignatureRepositories = []string{f.SignatureRepository}
	}
	if f.RegistryAuth != "" {
		out.Credentials, err = image.OpenCredentials(f.RegistryAuth)
		if err != nil {
			p.at("images.registryAuth", "%s", strings.ReplaceAll(err.Error(), "\n", "; "))
		} else {
			out.Checker.Keychain = out.Credentials
		}
	}
	f.CredentialProviders.open(p, &out)
	out.PullSecrets = f.PullSecrets
	if len(f.Namespaces) > 0 {
		out.Checker.Namespaces = map[string]image.NamespaceRule{}
	}
	for namespace, rule := range f.Namespaces {
		out.Checker.Namespaces[namespace] = image.NamespaceRule(rule)
	}
	p.between("images.recheck", f.Recheck, time.Second, time.Hour)
	p.between("images.ttl", f.TTL, time.Second, 24*time.Hour)
	p.between("images.failureTTL", f.FailureTTL, time.Second, time.Hour)
	p.between("images.timeout", f.Timeout, time.Second, 10*time.Minute)
	names := map[string]bool{}
	for i, v := range f.Verifiers {
		path := fmt.Sprintf("images.verifiers.%d", i)
		if names[v.Name] {
			p.at(path, "two verifiers are named %q", v.Name)
		}
		names[v.Name] = true
		if verifier := v.verifier(p, path); verifier != nil {
			out.Checker.Verifiers = append(out.Checker.Verifiers, verifier)
		}
	}
	probe := out.Checker
	probe.Now = time.Now
	if _, err := image.New(probe); err != nil {
		for _, text := range strings.Split(err.Error(), "\n") {
			text = strings.TrimPrefix(text, "image: ")
			key := "images"
			if rest, ok := strings.CutPrefix(text, `namespace "`); ok {
				namespace, _, _ := strings.Cut(rest, `"`)
				key = "images.namespaces." + namespace
			}
			p.at(key, "%s", text)
		}
	}
	return out
}

// owners says how far images have to be asked about by owner.
func (f imagesFile) owners() snapshot.ImageOwners {
	switch {
	case f.PullSecrets:
		return snapshot.ImagesOfAccounts
	case len(f.Namespaces) > 0:
		return snapshot.ImagesOfNamespaces
	default:
		return snapshot.ImagesOfAll
	}
}

func (f providersFile) open(p *problems, out *Images) {
	if f == (providersFile{}) {
		return
	}
	if f.Config == "" || f.BinDir == "" {
		p.at("images.credentialProviders", "give config and binDir, or neither")
		return
	}
	providers, err := image.OpenCredentialProviders(f.Config, f.BinDir)
	if err != nil {
		p.at("images.credentialProviders", "%s", strings.ReplaceAll(err.Error(), "\n", "; "))
		return
	}
	out.Checker.Keychain = image.Keychains(out.Checker.Keychain, providers)
}

func (f verifierFile) verifier(p *problems, path string) image.Verifier {
	if f.Keyless != nil {
		return f.keyless(p, path)
	}
	digests := len(f.Manifests)+len(f.Indexes)+len(f.Configs) > 0
	if (f.PublicKey != "") == digests {
		p.at(path, "verifier %q: give either publicKey (a PEM file) or digests (manifests, indexes, configs)", f.Name)
		return nil
	}
	if f.PublicKey == "" {
		return f.digests(p, path)
	}
	pem, err := readKeys(f.PublicKey)
	if err != nil {
		p.at(path+".publicKey", "%v", err)
		return nil
	}
	v, err := image.NewKeyVerifier(f.Name, pem)
	if err != nil {
		p.at(path+".publicKey", "%s: %s", f.PublicKey, strings.TrimPrefix(err.Error(), "image: "))
		return nil
	}
	return v
}

func (f verifierFile) keyless(p *problems, path string) image.Verifier {
	k := f.Keyless
	v, err := image.VerifierSpec{PublicKeyPath: f.PublicKey, Manifests: f.Manifests, Indexes: f.Indexes, Configs: f.Configs, TrustedRootPath: k.TrustedRoot,
		Keyless: &image.Keyless{Issuer: k.Issuer, IssuerPattern: k.IssuerPattern, Subject: k.Subject, SubjectPattern: k.SubjectPattern},
	}.Verifier(f.Name)
	if err != nil {
		p.at(path+".keyless", "%s", strings.TrimPrefix(err.Error(), "image: "))
		return nil
	}
	return v
}

// maxKeys bounds a file of public keys.
const maxKeys = 64 << 10

func readKeys(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	content, err := io.ReadAll(io.LimitReader(f, maxKeys+1))
	if err := errors.Join(err, f.Close()); err != nil {
		return nil, err
	}
	if len(content) > maxKeys {
		return nil, fmt.Errorf("%s has more than %d bytes", path, maxKeys)
	}
	return content, nil
}

func (f verifierFile) digests(p *problems, path string) image.Verifier {
	list := image.DigestList{
		Manifests: parseAll(p, path+".manifests", f.Manifests, workloadclaim.ParseManifestDigest),
		Indexes:   parseAll(p, path+".indexes", f.Indexes, workloadclaim.ParseIndexDigest),
		Configs:   parseAll(p, path+".configs", f.Configs, workloadclaim.ParseConfigDigest),
	}
	if len(list.Manifests)+len(list.Indexes)+len(list.Configs) == 0 {
		return nil // each one was reported
	}
	v, err := image.NewDigestVerifier(f.Name, list)
	if err != nil {
		p.at(path, "%s", strings.TrimPrefix(err.Error(), "image: "))
		return nil
	}
	return v
}

func parseAll[D any](p *problems, path string, texts []string, parse func(string) (D, error)) []D {
	var out []D
	for i, text := range texts {
		d, err := parse(text)
		if err != nil {
			p.at(fmt.Sprintf("%s.%d", path, i), "%s", strings.TrimPrefix(err.Error(), "workloadclaim: "))
			continue
		}
		out = append(out, d)
	}
	return out
}

func (p *problems) exists(key, path string) {
	if _, err := os.Stat(path); err != nil {
		p.at(key, "%v", err)
	}
}

func (p *problems) between(key string, d, least, most time.Duration) {
	if d < least || d > most {
		p.at(key, "%s is outside %s to %s", d, least, most)
	}
}

func (p *problems) listen(key, address string) {
	if address == "0" {
		return
	}
	if _, _, err := net.SplitHostPort(address); err != nil {
		p.at(key, "%q is neither host:port nor \"0\" (off)", address)
	}
}
