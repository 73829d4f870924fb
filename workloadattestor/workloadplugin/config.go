package workloadplugin

import (
	"errors"
	"os"
	"path/filepath"
	goruntime "runtime"
	"slices"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	authorizationv1client "k8s.io/client-go/kubernetes/typed/authorization/v1"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/keelson-project/keelson/nodeattestor/pluginconf"
	"github.com/keelson-project/keelson/nodeattestor/pluginmetrics"
	"github.com/keelson-project/keelson/workloadattestor/image"
	"github.com/keelson-project/keelson/workloadattestor/pod"
	"github.com/keelson-project/keelson/workloadattestor/procinfo"
	"github.com/keelson-project/keelson/workloadattestor/pullsecret"
	"github.com/keelson-project/keelson/workloadattestor/runtime"
	"github.com/keelson-project/keelson/workloadattestor/workloadclaim"
)

// Config is the plugin_data of WorkloadAttestor "keelson".
type Config struct {
	// NodeName is the Kubernetes name of this node, or NodeNameEnv the environment variable that holds it, for a
	// configuration that nodes share. One of them is required.
	NodeName    string `hcl:"node_name"`
	NodeNameEnv string `hcl:"node_name_env"`
	// CRISocket is the path of the container runtime's Unix socket. Required.
	CRISocket string `hcl:"cri_socket"`
	// CRITimeout bounds the questions about one container; default 5s.
	CRITimeout string `hcl:"cri_timeout"`
	// KubeletRoot is the kubelet's folder (its --root-dir), in which pods' own volumes are; default /var/lib/kubelet.
	KubeletRoot string `hcl:"kubelet_root"`
	// AllowedHostPaths are folders or files of the node that a pod may mount read-only and still be restricted.
	AllowedHostPaths []string `hcl:"allowed_host_paths"`
	// ProcRoot is the proc file system whose process IDs SPIRE gives; default /proc.
	ProcRoot string `hcl:"proc_root"`
	// CgroupRoot is where the cgroup file systems are mounted; default /sys/fs/cgroup. Only the selector pids-limit needs it.
	CgroupRoot string `hcl:"cgroup_root"`
	// AllowedBrokers are the SPIFFE IDs of brokers (SPIFFE Broker API) that may refer to workloads of this node.
	AllowedBrokers []string `hcl:"allowed_brokers"`
	// BrokerAccessPolicy is "enforced" (default: the Kubernetes API reviews whether the broker may refer to the pod) or "permissive".
	BrokerAccessPolicy string `hcl:"broker_access_policy"`
	// Kubeconfig is a file with access to the API (get pods), or InCluster the pod's own service account. With
	// neither, no selector sa is emitted.
	Kubeconfig string `hcl:"kubeconfig"`
	InCluster  bool   `hcl:"in_cluster"`
	// Registries that may be asked for manifests and signatures: host[:port] or host/repository.
	Registries []string `hcl:"registries"`
	// InsecureRegistries may be asked without TLS.
	InsecureRegistries []string `hcl:"insecure_registries"`
	// Mirrors are asked in place of a registry, by its host: {"docker.io" = ["mirror.example/dockerhub"]}.
	Mirrors map[string][]string `hcl:"mirrors"`
	// RegistryCAPaths are PEM files with the CAs that one registry's certificates come from, by its host.
	RegistryCAPaths map[string]string `hcl:"registry_ca_paths"`
	// RedirectHosts may be asked when a registry sends its client there: host, host:port or *.domain.
	RedirectHosts []string `hcl:"redirect_hosts"`
	// SignatureRepository holds signatures of images in other repositories, as cosign's COSIGN_REPOSITORY.
	SignatureRepository string `hcl:"signature_repository"`
	// RegistryAuthPath is a file with credentials in the form of ~/.docker/config.json, which is read again when it changes; without
	// it registries are asked anonymously.
	RegistryAuthPath string `hcl:"registry_auth_path"`
	// CredentialProviderConfigPath is a CredentialProviderConfig and CredentialProviderBinDir the folder of its plugins, as the kubelet's
	// --image-credential-provider-config and --image-credential-provider-bin-dir.
	CredentialProviderConfigPath string `hcl:"credential_provider_config_path"`
	CredentialProviderBinDir     string `hcl:"credential_provider_bin_dir"`
	// PullSecrets has the pods' own pull secrets count: it needs the API, and get on secrets and serviceaccounts.
	PullSecrets bool `hcl:"pull_secrets"`
	// Namespaces say which registries and verifiers count for pods of a namespace, by its name; "*" is for all others.
	Namespaces map[string]NamespaceConfig `hcl:"namespaces"`
	// AllowedSnapshotters are containerd's snapshotters that are trusted with images, beside those that unpack layers whole.
	AllowedSnapshotters []string `hcl:"allowed_snapshotters"`
	// OCILayouts are directories in OCI image layout that hold images or signatures.
	OCILayouts []string `hcl:"oci_layouts"`
	// CacheTTL is how long a proof about an image is served without being made again; default 2h.
	CacheTTL string `hcl:"cache_ttl"`
	// ImageTimeout bounds the work for one image; default 15s.
	ImageTimeout string `hcl:"image_timeout"`
	// Verifiers by name: the name becomes signed-by:<name>.
	Verifiers map[string]VerifierConfig `hcl:"verifiers"`
	// Metrics is where numbers, health and readiness are served; nowhere without it.
	Metrics *pluginmetrics.Config `hcl:"metrics"`
}

// NamespaceConfig is one of Namespaces. What is left out is not narrowed.
type NamespaceConfig struct {
	Registries []string `hcl:"registries"`
	Verifiers  []string `hcl:"verifiers"`
}

// VerifierConfig is one of Verifiers: keys, an identity, or digests.
type VerifierConfig struct {
	// Keyless is an identity that signs with short-lived certificates.
	Keyless *KeylessConfig `hcl:"keyless"`
	// PublicKeyPath is a PEM file with one or more "PUBLIC KEY" blocks.
	PublicKeyPath string `hcl:"public_key_path"`
	// Manifests, Indexes and Configs are digests of accepted images, "sha256:<hex>", each under its kind.
	Manifests []string `hcl:"manifests"`
	Indexes   []string `hcl:"indexes"`
	Configs   []string `hcl:"configs"`
}

// KeylessConfig is an issuer and a subject, each exactly or by a pattern that has to match all of it.
type KeylessConfig struct {
	Issuer         string `hcl:"issuer"`
	IssuerPattern  string `hcl:"issuer_pattern"`
	Subject        string `hcl:"subject"`
	SubjectPattern string `hcl:"subject_pattern"`
	// TrustedRootPath is a trusted_root.json. Required.
	TrustedRootPath string `hcl:"trusted_root_path"`
}

// Defaults and limits of Config.
const (
	defaultCRITimeout = 5 * time.Second
	defaultProcRoot   = "/proc"
	defaultCgroupRoot = "/sys/fs/cgroup"

	defaultKubeletRoot = "/var/lib/kubelet"

	podFresh   = 30 * time.Second
	podTimeout = 5 * time.Second
)

// parse reads and checks a configuration and makes the attestor it describes. It is all of Configure and of Validate.
// It opens no connection.
func parse(text string, now func() time.Time) (*attestor, []string, error) {
	var c Config
	p := pluginconf.Decode(text, &c)
	if p.Err() != nil {
		return nil, nil, p.Err()
	}
	var notes []string
	node := c.node(p)
	a := &attestor{containers: containers{now: now}, node: node, socket: c.CRISocket, listen: c.Metrics.Address(p)}
	a.proc = procinfo.New(absolute(p, "proc_root", c.ProcRoot, defaultProcRoot))
	a.cgroups = absolute(p, "cgroup_root", c.CgroupRoot, defaultCgroupRoot)
	a.own = c.ownPaths(p)
	a.snapshotters = c.AllowedSnapshotters
	a.dialRuntime(c, p)
	api, err := c.api()
	switch {
	case err != nil:
		p.Add("kubeconfig", "%v", err)
	case api == nil:
		notes = append(notes, "neither kubeconfig nor in_cluster is set: no selector sa, runtime-class or runtime will be emitted")
	}
	keep := duration(p, "cache_ttl", c.CacheTTL, image.DefaultTTL)
	if api != nil {
		a.pods = pod.New(pod.Config{Node: node, Pods: podGetter{api.core.RESTClient()}, Fresh: podFresh, Keep: keep, Timeout: podTimeout, Now: now, AllowedHostPaths: c.AllowedHostPaths})
	}
	a.brokers, a.reviews = c.allowedBrokers(p), c.reviewer(api, p)
	if c.PullSecrets && api == nil {
		p.Add("pull_secrets", "needs kubeconfig or in_cluster: pull secrets are read from the Kubernetes API")
	}
	cas, err := image.ReadCAs(c.RegistryCAPaths)
	if err != nil {
		p.Add("registry_ca_paths", "%v", err)
	}
	var signatures []string
	if c.SignatureRepository != "" {
		signatures = []string{c.SignatureRepository}
	}
	checker, err := image.New(image.Config{
		Mirrors: c.Mirrors, RegistryCAs: cas, RedirectHosts: c.RedirectHosts, SignatureRepositories: signatures,
		Registries:         c.Registries,
		InsecureRegistries: c.InsecureRegistries,
		Keychain:           c.keychain(a, p),
		PullSecrets:        c.pullSecrets(api, now),
		Namespaces:         c.rules(),
		Layouts:            c.OCILayouts,
		Verifiers:          c.verifiers(p),
		Platform:           image.Platform{OS: goruntime.GOOS, Architecture: goruntime.GOARCH},
		TTL:                keep,
		Timeout:            duration(p, "image_timeout", c.ImageTimeout, image.DefaultTimeout),
		Now:                now,
	})
	if err != nil {
		p.Add("images", "%v", err)
	}
	a.images = checker
	if err := p.Err(); err != nil {
		return nil, notes, errors.Join(err, a.close())
	}
	return a, notes, nil
}

// keychain has the operator's credentials: those of the file come before those of providers.
func (c Config) keychain(a *attestor, p *pluginconf.Problems) authn.Keychain {
	var file, providers authn.Keychain
	if c.RegistryAuthPath != "" {
		credentials, err := image.OpenCredentials(c.RegistryAuthPath)
		if err != nil {
			p.Add("registry_auth_path", "%v", err)
		} else {
			a.credentials, file = credentials, credentials
		}
	}
	switch {
	case (c.CredentialProviderConfigPath == "") != (c.CredentialProviderBinDir == ""):
		p.Add("credential_provider_config_path", "give credential_provider_config_path and credential_provider_bin_dir, or neither")
	case c.CredentialProviderConfigPath != "":
		opened, err := image.OpenCredentialProviders(c.CredentialProviderConfigPath, c.CredentialProviderBinDir)
		if err != nil {
			p.Add("credential_provider_config_path", "%v", err)
		} else {
			providers = opened
		}
	}
	return image.Keychains(file, providers)
}

func (c Config) pullSecrets(api *apiClients, now func() time.Time) image.PullSecrets {
	if !c.PullSecrets || api == nil {
		return nil
	}
	return pullsecret.New(pullsecret.Client{CoreV1Interface: api.core}, now)
}

func (c Config) rules() map[string]image.NamespaceRule {
	out := make(map[string]image.NamespaceRule, len(c.Namespaces))
	for namespace, rule := range c.Namespaces {
		out[namespace] = image.NamespaceRule(rule)
	}
	return out
}

// node is the name of this node.
func (c Config) node(p *pluginconf.Problems) string {
	key, name := "node_name", c.NodeName
	switch {
	case c.NodeName != "" && c.NodeNameEnv != "":
		p.Add("node_name_env", "give node_name or node_name_env, not both")
		return ""
	case c.NodeNameEnv != "":
		key, name = "node_name_env", os.Getenv(c.NodeNameEnv)
	}
	if _, err := workloadclaim.NewSelector(workloadclaim.KindNode, name); err != nil {
		p.Add(key, "the Kubernetes name of this node is required: %v", err)
	}
	return name
}

// absolute is the folder that key gives, or def.
func absolute(p *pluginconf.Problems, key, given, def string) string {
	if given == "" {
		return def
	}
	if !filepath.IsAbs(given) {
		p.Add(key, "%q is not an absolute path", given)
	}
	return filepath.Clean(given)
}

func (a *attestor) dialRuntime(c Config, p *pluginconf.Problems) {
	timeout := duration(p, "cri_timeout", c.CRITimeout, defaultCRITimeout)
	if !filepath.IsAbs(c.CRISocket) {
		p.Add("cri_socket", "%q: the absolute path of the container runtime's socket is required, such as /run/containerd/containerd.sock", c.CRISocket)
		return
	}
	client, err := runtime.Dial(c.CRISocket, timeout)
	if err != nil {
		p.Add("cri_socket", "%v", err)
		return
	}
	a.runtime = client
	a.closers = append(a.closers, client.Close)
}

// apiClients ask one Kubernetes API.
type apiClients struct {
	core          *corev1client.CoreV1Client
	authorization *authorizationv1client.AuthorizationV1Client
}

// api makes the API's clients; nil when none is configured.
func (c Config) api() (*apiClients, error) {
	var config *rest.Config
	var err error
	switch {
	case c.Kubeconfig != "" && c.InCluster:
		return nil, errors.New("give kubeconfig or in_cluster, not both")
	case c.Kubeconfig != "":
		config, err = clientcmd.BuildConfigFromFlags("", c.Kubeconfig)
	case c.InCluster:
		config, err = rest.InClusterConfig()
	default:
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	// The client's defaults (5 requests a second) would make a node's start wait.
	config.QPS, config.Burst = 50, 100
	core, err1 := corev1client.NewForConfig(config)
	authorization, err2 := authorizationv1client.NewForConfig(config)
	if err := errors.Join(err1, err2); err != nil {
		return nil, err
	}
	return &apiClients{core: core, authorization: authorization}, nil
}

func (c Config) verifiers(p *pluginconf.Problems) []image.Verifier {
	var names []string
	for name := range c.Verifiers {
		names = append(names, name)
	}
	slices.Sort(names)
	var out []image.Verifier
	for _, name := range names {
		v, err := c.Verifiers[name].verifier(name)
		if err != nil {
			p.Add("verifiers."+name, "%v", err)
			continue
		}
		out = append(out, v)
	}
	return out
}

func (v VerifierConfig) verifier(name string) (image.Verifier, error) {
	spec := image.VerifierSpec{PublicKeyPath: v.PublicKeyPath, Manifests: v.Manifests, Indexes: v.Indexes, Configs: v.Configs}
	if k := v.Keyless; k != nil {
		spec.TrustedRootPath = k.TrustedRootPath
		spec.Keyless = &image.Keyless{Issuer: k.Issuer, IssuerPattern: k.IssuerPattern, Subject: k.Subject, SubjectPattern: k.SubjectPattern}
	}
	return spec.Verifier(name)
}

func duration(p *pluginconf.Problems, key, text string, def time.Duration) time.Duration {
	if text == "" {
		return def
	}
	d, err := time.ParseDuration(text)
	if err != nil || d <= 0 {
		p.Add(key, "%q is not a positive duration such as %q", text, def.String())
		return def
	}
	return d
}
