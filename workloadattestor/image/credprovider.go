package image

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"go.yaml.in/yaml/v3"
	"golang.org/x/sync/singleflight"
)

// Bounds on credential providers. The kubelet gives a plugin a minute; the work for an image ends long before that.
const (
	maxProviders       = 32
	maxMatchImages     = 256
	providerTimeout    = 10 * time.Second
	providerRetry      = 10 * time.Second // after a run that failed
	providerLeast      = DefaultTimeout   // for one look at an image, also where the plugin says "do not cache"
	maxProviderAnswers = 1024
)

// CredentialProviders runs the kubelet's credential provider plugins (Kubernetes: "Configure a kubelet image credential provider").
// It is an authn.Keychain and safe for concurrent use. A plugin is run when an image's repository that it is for is asked, and its
// answer is kept for as long and for as much (image, registry, all) as it says.
type CredentialProviders struct {
	providers []*provider
}

// provider is one plugin.
type provider struct {
	name, program, apiVersion string
	match                     []credential
	keep                      time.Duration
	args, env                 []string

	flight singleflight.Group
	mu     sync.Mutex
	kept   map[string]providerAnswer // by "image "+repository, "registry "+host, or "global"
}

type providerAnswer struct {
	entries []credential // the most specific ones first
	err     error
	until   time.Time
}

// The file (k8s.io/kubelet/config, CredentialProviderConfig v1alpha1, v1beta1 and v1, which differ in tokenAttributes alone).
type providersFile struct {
	APIVersion string         `yaml:"apiVersion"`
	Kind       string         `yaml:"kind"`
	Providers  []providerFile `yaml:"providers"`
}

type providerFile struct {
	Name                 string         `yaml:"name"`
	MatchImages          []string       `yaml:"matchImages"`
	DefaultCacheDuration *time.Duration `yaml:"defaultCacheDuration"`
	APIVersion           string         `yaml:"apiVersion"`
	Args                 []string       `yaml:"args"`
	Env                  []struct {
		Name  string `yaml:"name"`
		Value string `yaml:"value"`
	} `yaml:"env"`
	TokenAttributes any `yaml:"tokenAttributes"`
}

var (
	providersVersions = []string{"kubelet.config.k8s.io/v1", "kubelet.config.k8s.io/v1beta1", "kubelet.config.k8s.io/v1alpha1"}
	providerVersions  = []string{"credentialprovider.kubelet.k8s.io/v1", "credentialprovider.kubelet.k8s.io/v1beta1", "credentialprovider.kubelet.k8s.io/v1alpha1"}
)

// OpenCredentialProviders reads a CredentialProviderConfig, the file of the kubelet's --image-credential-provider-config, and looks up
// its plugins in a folder, that of --image-credential-provider-bin-dir. All problems are reported, each with its line.
func OpenCredentialProviders(config, folder string) (*CredentialProviders, error) {
	raw, err := ReadFile(config, maxCredentials)
	if err != nil {
		return nil, fmt.Errorf("image: credential providers: %w", err)
	}
	out, err := parseProviders(raw, folder)
	if err != nil {
		return nil, fmt.Errorf("image: credential providers %s: %w", config, err)
	}
	return out, nil
}

func parseProviders(raw []byte, folder string) (*CredentialProviders, error) {
	if !filepath.IsAbs(folder) {
		return nil, fmt.Errorf("the plugins' folder %s: want an absolute path", short(folder))
	}
	var file providersFile
	decoder := yaml.NewDecoder(bytes.NewReader(raw))
	decoder.KnownFields(true)
	if err := decoder.Decode(&file); err != nil {
		return nil, err
	}
	if err := decoder.Decode(&yaml.Node{}); !errors.Is(err, io.EOF) {
		return nil, errors.New("more than one document")
	}
	var lines struct {
		Providers []yaml.Node `yaml:"providers"`
	}
	if err := yaml.Unmarshal(raw, &lines); err != nil {
		return nil, err
	}
	switch {
	case !slices.Contains(providersVersions, file.APIVersion) || file.Kind != "CredentialProviderConfig":
		return nil, fmt.Errorf("line 1: want apiVersion %s and kind CredentialProviderConfig", providersVersions[0])
	case len(file.Providers) == 0 || len(file.Providers) > maxProviders:
		return nil, fmt.Errorf("line 1: %d providers, want 1 to %d", len(file.Providers), maxProviders)
	}
	out := &CredentialProviders{}
	var problems []error
	for i, f := range file.Providers {
		p, err := f.provider(folder)
		if err == nil && slices.ContainsFunc(out.providers, func(o *provider) bool { return o.name == p.name }) {
			err = errors.New("there is one of this name already")
		}
		if err != nil {
			problems = append(problems, fmt.Errorf("line %d: provider %s: %w", lines.Providers[i].Line, short(f.Name), err))
			continue
		}
		out.providers = append(out.providers, p)
	}
	return out, errors.Join(problems...)
}

// provider checks one entry as the kubelet does (pkg/credentialprovider/plugin, validateCredentialProviderConfig).
func (f providerFile) provider(folder string) (*provider, error) {
	switch {
	case !helperName.MatchString(f.Name):
		return nil, errors.New("name: want the plugin's file name")
	case !slices.Contains(providerVersions, f.APIVersion):
		return nil, fmt.Errorf("apiVersion %s: want one of %s", short(f.APIVersion), strings.Join(providerVersions, ", "))
	case f.DefaultCacheDuration == nil || *f.DefaultCacheDuration < 0:
		return nil, errors.New("defaultCacheDuration: want a duration such as 12h")
	case len(f.MatchImages) == 0 || len(f.MatchImages) > maxMatchImages:
		return nil, fmt.Errorf("matchImages: %d entries, want 1 to %d", len(f.MatchImages), maxMatchImages)
	case f.TokenAttributes != nil:
		return nil, errors.New("tokenAttributes: service accounts' tokens are not sent to plugins: leave it out, and give the plugin rights of its own")
	}
	p := &provider{name: f.Name, apiVersion: f.APIVersion, keep: *f.DefaultCacheDuration, args: f.Args, kept: map[string]providerAnswer{}}
	for _, pattern := range f.MatchImages {
		c, err := credentialKey(pattern)
		if err != nil {
			return nil, fmt.Errorf("matchImages: %s: %w", short(pattern), err)
		}
		p.match = append(p.match, c)
	}
	for _, e := range f.Env {
		if e.Name == "" || strings.ContainsAny(e.Name, "=\x00") || strings.Contains(e.Value, "\x00") {
			return nil, fmt.Errorf("env: %s is no variable's name", short(e.Name))
		}
		p.env = append(p.env, e.Name+"="+e.Value)
	}
	program, err := exec.LookPath(filepath.Join(folder, f.Name))
	if err != nil {
		return nil, fmt.Errorf("its program cannot be run: %w", err)
	}
	p.program = program
	return p, nil
}

// matchesImage follows the kubelet (kubernetes, URLsMatchStr): the host's labels and port, and the beginning of the path. Docker Hub
// is docker.io there.
func (c credential) matchesImage(target authn.Resource) bool {
	host, port := splitPort(target.RegistryStr())
	if c.isPattern && target.RegistryStr() == name.DefaultRegistry {
		host = "docker.io"
	}
	return c.matchesHost(host, port) && strings.HasPrefix(pathOf(target), c.path)
}

// pathOf is a repository without its registry.
func pathOf(target authn.Resource) string {
	return strings.TrimPrefix(strings.TrimPrefix(target.String(), target.RegistryStr()), "/")
}

// Resolve returns the credentials of the plugins that are for a repository; anonymous where none is.
func (p *CredentialProviders) Resolve(target authn.Resource) (authn.Authenticator, error) {
	var out inOrder
	for _, one := range p.providers {
		if slices.ContainsFunc(one.match, func(c credential) bool { return c.matchesImage(target) }) {
			out = append(out, provided{one, target})
		}
	}
	if len(out) == 0 {
		return authn.Anonymous, nil
	}
	return out, nil
}

// provided are the credentials that a plugin has for a repository.
type provided struct {
	provider *provider
	target   authn.Resource
}

// Authorization implements authn.Authenticator.
func (p provided) Authorization() (*authn.AuthConfig, error) {
	return p.AuthorizationContext(context.Background())
}

// AuthorizationContext implements authn.ContextAuthenticator. An error holds no secret.
func (p provided) AuthorizationContext(ctx context.Context) (*authn.AuthConfig, error) {
	answer, err := p.provider.answer(ctx, p.target)
	if err == nil {
		err = answer.err
	}
	if err != nil {
		return nil, fmt.Errorf("image: credentials for %s from provider %s: %w", short(p.target.String()), p.provider.name, err)
	}
	for _, e := range answer.entries {
		if e.matchesImage(p.target) {
			config := e.config
			return &config, nil
		}
	}
	return &authn.AuthConfig{}, nil
}

// answer is what the plugin says for a repository: what is kept, or the answer of a run. Callers for one repository wait for one run.
func (p *provider) answer(ctx context.Context, target authn.Resource) (providerAnswer, error) {
	image := strings.Replace(target.String(), name.DefaultRegistry+"/", "docker.io/", 1)
	if answer, ok := p.known(image, target.RegistryStr()); ok {
		return answer, nil
	}
	done := p.flight.DoChan(image, func() (any, error) {
		if answer, ok := p.known(image, target.RegistryStr()); ok {
			return answer, nil
		}
		key, answer := p.run(context.WithoutCancel(ctx), image, target.RegistryStr())
		p.note(key, answer)
		return answer, nil
	})
	select {
	case <-ctx.Done():
		return providerAnswer{}, ctx.Err()
	case result := <-done:
		answer, ok := result.Val.(providerAnswer)
		if !ok {
			return providerAnswer{}, errors.New("its run ended without an answer")
		}
		return answer, nil
	}
}

func (p *provider) known(image, registry string) (providerAnswer, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, key := range []string{"image " + image, "registry " + registry, "global"} {
		if answer, ok := p.kept[key]; ok && time.Now().Before(answer.until) {
			return answer, true
		}
	}
	return providerAnswer{}, false
}

func (p *provider) note(key string, answer providerAnswer) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.kept) >= maxProviderAnswers {
		clear(p.kept)
	}
	p.kept[key] = answer
}

// run asks the plugin (k8s.io/kubelet/pkg/apis/credentialprovider, CredentialProviderRequest and -Response), and returns what its
// answer is to be kept for.
func (p *provider) run(ctx context.Context, image, registry string) (string, providerAnswer) {
	request, err := json.Marshal(map[string]string{"kind": "CredentialProviderRequest", "apiVersion": p.apiVersion, "image": image})
	var raw []byte
	if err == nil {
		raw, err = runBounded(ctx, runLimits{providerTimeout, maxHelperOut}, request, append(os.Environ(), p.env...), p.program, p.args...)
	}
	if err != nil {
		return "image " + image, providerAnswer{err: err, until: time.Now().Add(providerRetry)}
	}
	scope, keep, entries, err := p.parse(raw)
	if err != nil {
		return "image " + image, providerAnswer{err: fmt.Errorf("its answer is no CredentialProviderResponse: %w", err), until: time.Now().Add(providerRetry)}
	}
	key := map[string]string{"Image": "image " + image, "Registry": "registry " + registry, "Global": "global"}[scope]
	return key, providerAnswer{entries: entries, until: time.Now().Add(max(keep, providerLeast))}
}

// parse reads a plugin's answer. Errors hold nothing of it, because it has secrets.
func (p *provider) parse(raw []byte) (scope string, keep time.Duration, entries []credential, err error) {
	var got struct {
		Kind          string  `json:"kind"`
		APIVersion    string  `json:"apiVersion"`
		CacheKeyType  string  `json:"cacheKeyType"`
		CacheDuration *string `json:"cacheDuration"`
		Auth          map[string]struct {
			Username string `json:"username"`
			Password string `json:"password"`
		} `json:"auth"`
	}
	if _, err := decodeStrict(raw, &got); err != nil {
		return "", 0, nil, errors.New("it is not JSON of that form, or has a key twice")
	}
	if got.Kind != "CredentialProviderResponse" || got.APIVersion != p.apiVersion {
		return "", 0, nil, fmt.Errorf("want kind CredentialProviderResponse and apiVersion %s", p.apiVersion)
	}
	if !slices.Contains([]string{"Image", "Registry", "Global"}, got.CacheKeyType) {
		return "", 0, nil, errors.New("cacheKeyType: want Image, Registry or Global")
	}
	keep = p.keep
	if got.CacheDuration != nil {
		if keep, err = time.ParseDuration(*got.CacheDuration); err != nil {
			return "", 0, nil, errors.New("cacheDuration: want a duration such as 6h")
		}
	}
	for key, auth := range got.Auth {
		c, err := credentialKey(key)
		if err != nil {
			continue // can match no image, for the kubelet too
		}
		c.config = authn.AuthConfig{Username: auth.Username, Password: auth.Password}
		entries = append(entries, c)
	}
	slices.SortFunc(entries, func(a, b credential) int { return cmp.Or(moreSpecific(a, b), cmp.Compare(b.key, a.key)) })
	return got.CacheKeyType, keep, entries, nil
}

type runLimits struct {
	time   time.Duration
	output int
}

// runBounded runs a program and returns what it wrote to its standard output. An error never holds what it wrote, which may be
// secret.
func runBounded(ctx context.Context, limits runLimits, input []byte, env []string, program string, args ...string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, limits.time)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, args...) //nolint:gosec // the operator's configuration names the program
	cmd.Stdin = bytes.NewReader(input)
	cmd.Env = env
	cmd.WaitDelay = time.Second // for what the program started and that holds the pipe
	out := &boundedBuffer{limit: limits.output, full: cancel}
	cmd.Stdout = out
	err := cmd.Run()
	switch {
	case out.over:
		return nil, fmt.Errorf("it wrote more than %d bytes", limits.output)
	case ctx.Err() != nil:
		return nil, fmt.Errorf("it gave no answer: %w", ctx.Err())
	}
	return out.buffer.Bytes(), err
}
