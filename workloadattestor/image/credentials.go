package image

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	pattern "path"
	"slices"
	"strings"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
)

// maxCredentials bounds a credentials file.
const maxCredentials = 1 << 20

// credentials are the entries of one file, the most specific ones first.
type credentials struct {
	entries []credential
	store   *helper // for registries that no entry names; nil when there is none
}

// credential is one entry: what it is for, and where the secret comes from.
type credential struct {
	host, path string // host may be a pattern, path "" or a repository's beginning
	port       string
	isPattern  bool
	key        string // as the file has it: what a helper is asked for
	line       int
	config     authn.AuthConfig
	helper     *helper // in place of config
}

// ParseCredentials reads registry credentials in the form of ~/.docker/config.json and of Kubernetes' secret type
// kubernetes.io/dockerconfigjson:
//
//	{"auths": {"registry.example/team": {"auth": base64 of "user:password"}}, "credsStore": "name", "credHelpers": {"registry": "name"}}
//
// An entry of auths has auth, or username and password, or identitytoken (an OAuth 2 refresh token, as `az acr login` writes it), or
// registrytoken (a bearer token). An empty one says that credsStore has the credentials. A helper is the program
// docker-credential-<name> in PATH, or an absolute path; it is run when its registry is asked.
//
// Keys match as the kubelet's do (kubernetes, pkg/credentialprovider): a host, each of whose labels may be a pattern ("*.example"),
// with the same port, and the beginning of a repository's name. An exact host comes before a pattern, then the longest path; a
// path of whole components before one that ends in the middle of a name.
//
// What cannot work or could be read in two ways is refused, with its line. Errors hold no secret.
func ParseCredentials(raw []byte) (authn.Keychain, error) {
	c, err := parseCredentials(raw)
	if err != nil {
		return nil, err
	}
	return c, nil
}

func parseCredentials(raw []byte) (*credentials, error) {
	if len(raw) > maxCredentials {
		return nil, fmt.Errorf("image: credentials of %d bytes, the limit is %d", len(raw), maxCredentials)
	}
	p := credentialParser{raw: raw, out: &credentials{}, seen: map[string]int{}}
	return p.parse()
}

// ParsePullSecret reads a Secret of type kubernetes.io/dockerconfigjson or kubernetes.io/dockercfg. Who writes Secrets in a namespace
// controls it, so helpers that it names are not run, and entries that need one have no credentials. It returns nil where there are
// no credentials.
func ParsePullSecret(secretType string, data map[string][]byte) (authn.Keychain, error) {
	var raw []byte
	switch secretType {
	case "kubernetes.io/dockerconfigjson":
		raw = data[".dockerconfigjson"]
	case "kubernetes.io/dockercfg": // the content of auths alone
		raw = slices.Concat([]byte(`{"auths":`), data[".dockercfg"], []byte("}"))
	default:
		return nil, fmt.Errorf("image: secret of type %s, want kubernetes.io/dockerconfigjson or kubernetes.io/dockercfg", short(secretType))
	}
	if len(raw) > maxCredentials {
		return nil, fmt.Errorf("image: credentials of %d bytes, the limit is %d", len(raw), maxCredentials)
	}
	p := credentialParser{raw: raw, out: &credentials{}, seen: map[string]int{}, noHelpers: true}
	if err := p.file(); err != nil {
		return nil, fmt.Errorf("image: %w", err)
	}
	if len(p.out.entries) == 0 {
		return nil, nil
	}
	slices.SortStableFunc(p.out.entries, moreSpecific)
	return p.out, nil
}

func (p *credentialParser) parse() (*credentials, error) {
	if err := p.file(); err != nil {
		return nil, fmt.Errorf("image: %w", err)
	}
	if len(p.out.entries) == 0 && p.out.store == nil {
		return nil, errors.New(`image: credentials for no registry: want {"auths": {"registry.example": {"auth": …}}}`)
	}
	slices.SortStableFunc(p.out.entries, moreSpecific)
	return p.out, nil
}

// credentialParser reads one file. It keeps the line of each key, which encoding/json does not.
type credentialParser struct {
	raw     []byte
	out     *credentials
	seen    map[string]int // lines, by what an entry is for
	auths   []field
	helpers []field
	// noHelpers leaves out all that needs a helper.
	noHelpers bool
}

// field is a key of an object, and its value.
type field struct {
	key   string
	line  int
	value json.RawMessage
}

// othersKeys are keys of Docker's configuration file that have nothing to do with credentials (docker/cli, cli/config/configfile),
// in lower case.
var othersKeys = []string{
	"httpheaders", "psformat", "imagesformat", "networksformat", "pluginsformat", "volumesformat", "statsformat", "detachkeys",
	"serviceinspectformat", "servicesformat", "tasksformat", "secretformat", "configformat", "nodesformat", "prunefilters", "proxies",
	"experimental", "stackorchestrator", "kubernetes", "currentcontext", "cliplugins", "clipluginsextradirs", "plugins", "aliases", "features",
}

func (p *credentialParser) file() error {
	fields, err := p.fields(p.raw, 1)
	if err != nil {
		return fmt.Errorf("credentials are not JSON of the form {\"auths\": {…}}: %w", err)
	}
	for _, f := range fields {
		switch key := fold(f.key); {
		case key == "auths":
			p.auths, err = p.fields(f.value, f.line)
		case p.noHelpers: // of no use to the kubelet either
		case key == "credhelpers":
			p.helpers, err = p.fields(f.value, f.line)
		case key == "credsstore":
			err = p.store(f)
		case !slices.Contains(othersKeys, key):
			err = fmt.Errorf("line %d: key %s is not known here; want auths, credsStore or credHelpers", f.line, short(f.key))
		}
		if err != nil {
			return fmt.Errorf("credentials: %w", err)
		}
	}
	var problems []error
	for _, f := range p.helpers {
		problems = append(problems, p.add(f, p.readHelper))
	}
	for _, f := range p.auths {
		problems = append(problems, p.add(f, p.readAuth))
	}
	if err := errors.Join(problems...); err != nil {
		return fmt.Errorf("credentials: %w", err)
	}
	return nil
}

// fields reads one object. A key given twice, also one that differs only in case, is refused.
func (p *credentialParser) fields(raw []byte, line int) ([]field, error) {
	dec := json.NewDecoder(bytes.NewReader(raw))
	at := func() int { return line + bytes.Count(raw[:dec.InputOffset()], []byte("\n")) }
	token, err := dec.Token()
	if err != nil || token != json.Delim('{') {
		return nil, fmt.Errorf("line %d: not a JSON object", at())
	}
	var out []field
	lines := map[string]int{}
	for dec.More() {
		token, err := dec.Token()
		key, ok := token.(string)
		if err != nil || !ok {
			return nil, fmt.Errorf("line %d: not JSON", at())
		}
		f := field{key: key, line: at()}
		if first, twice := lines[fold(key)]; twice {
			return nil, fmt.Errorf("line %d: key %s is given twice, first in line %d", f.line, short(key), first)
		}
		lines[fold(key)] = f.line
		if err := dec.Decode(&f.value); err != nil {
			return nil, fmt.Errorf("line %d: the value of %s is not JSON", f.line, short(key))
		}
		// The value's own first line, where it does not begin in its key's.
		f.line = at() - bytes.Count(f.value, []byte("\n"))
		out = append(out, f)
	}
	if _, err := dec.Token(); err != nil {
		return nil, fmt.Errorf("line %d: not JSON: the object has no end", at())
	}
	if rest := bytes.TrimSpace(raw[dec.InputOffset():]); len(rest) > 0 {
		return nil, fmt.Errorf("line %d: data after the end of the JSON document", at())
	}
	return out, nil
}

// add adds one entry, unless there is one for the same already.
func (p *credentialParser) add(f field, read func(field, *credential) error) error {
	c, err := credentialKey(f.key)
	what := c.host + ":" + c.port + "/" + c.path
	first, twice := p.seen[what]
	if err == nil {
		c.line = f.line
		err = read(f, &c)
	}
	switch {
	case errors.Is(err, errEmpty) && p.noHelpers:
		return nil
	case errors.Is(err, errEmpty) && twice && slices.ContainsFunc(p.out.entries, func(e credential) bool { return e.line == first && e.helper != nil }):
		return nil // "docker login" leaves an empty entry where one of credHelpers has the credentials
	case errors.Is(err, errEmpty) && p.out.store != nil && !twice:
		c.helper = p.out.store
	case err != nil:
		return fmt.Errorf("line %d: %s: %w", f.line, short(f.key), err)
	case twice:
		return fmt.Errorf("line %d: %s: credentials for the same are given twice, first in line %d", f.line, short(f.key), first)
	}
	p.seen[what] = f.line
	p.out.entries = append(p.out.entries, c)
	return nil
}

// errEmpty is an entry of auths without credentials.
var errEmpty = errors.New("the entry has no credentials, and there is no credsStore that could have them")

func (p *credentialParser) store(f field) error {
	var program string
	err := json.Unmarshal(f.value, &program)
	if err == nil && program != "" {
		p.out.store, err = newHelper(program)
	}
	if err != nil {
		return fmt.Errorf("line %d: credsStore: %w", f.line, err)
	}
	return nil
}

func (p *credentialParser) readHelper(f field, c *credential) error {
	var program string
	err := json.Unmarshal(f.value, &program)
	switch {
	case err != nil:
		return errors.New("want a helper's name")
	case c.isPattern || c.path != "":
		return errors.New("want a registry's host: a helper is asked for a whole registry")
	}
	c.helper, err = newHelper(program)
	return err
}

// authKeys are what an entry of auths may have.
var authKeys = []string{"auth", "username", "password", "email", "serveraddress", "identitytoken", "registrytoken"}

func (p *credentialParser) readAuth(f field, c *credential) error {
	fields, err := p.fields(f.value, f.line)
	if err != nil {
		return errors.New(`want {"auth": …}, {"username": …, "password": …}, {"identitytoken": …} or {"registrytoken": …}`)
	}
	for _, f := range fields {
		if !slices.Contains(authKeys, fold(f.key)) {
			return fmt.Errorf("key %s is not known; want one of %s", short(f.key), strings.Join(authKeys, ", "))
		}
	}
	var given struct{ Auth, Username, Password, IdentityToken, RegistryToken string }
	if json.Unmarshal(f.value, &given) != nil {
		return errors.New("values are text")
	}
	if given.Auth == "" && given.Username == "" && given.Password == "" && given.IdentityToken == "" && given.RegistryToken == "" {
		return errEmpty
	}
	// AuthConfig decodes auth as Docker and the kubelet do, with padding and without.
	if json.Unmarshal(f.value, &c.config) != nil {
		return errors.New(`auth is not base64 of "user:password"`)
	}
	token := given.IdentityToken != "" || given.RegistryToken != ""
	switch {
	case given.IdentityToken != "" && given.RegistryToken != "":
		return errors.New("give identitytoken or registrytoken, not both")
	case given.Auth != "" && (differs(given.Username, c.config.Username) || differs(given.Password, c.config.Password)):
		return errors.New("auth and username or password say different things")
	case given.Auth == "" && !token && (given.Username == "" || given.Password == ""):
		return errors.New("username and password belong together")
	}
	return nil
}

func differs(given, decoded string) bool { return given != "" && given != decoded }

// credentialKey reads what an entry is for: [scheme://]host[:port][/path], where a path /v1/ or /v2/ is the API's and no
// repository's (kubernetes, BasicDockerKeyring.Add).
func credentialKey(key string) (credential, error) {
	c := credential{key: key}
	rest, isURL := key, false
	for _, scheme := range []string{"https://", "http://"} {
		if after, ok := strings.CutPrefix(rest, scheme); ok {
			rest, isURL = after, true
			break
		}
	}
	if strings.Contains(rest, "://") {
		return c, errors.New("not a registry's name; want host, host:port or host/repository")
	}
	host, repository, _ := strings.Cut(rest, "/")
	repository += "/"
	for _, api := range []string{"v1/", "v2/"} {
		if after, ok := strings.CutPrefix(repository, api); ok && (isURL || strings.HasSuffix(rest, "/") || after != "") {
			repository = after
			break
		}
	}
	c.path = strings.TrimSuffix(repository, "/")
	if c.path != "" {
		if err := plainPath(c.path); err != nil {
			return c, err
		}
		if strings.ContainsAny(c.path, "*?[@:") {
			return c, errors.New("a path has no patterns, no tag and no digest")
		}
	}
	if strings.ContainsAny(host, "*?[") {
		return c, c.setPattern(host)
	}
	registry, err := name.NewRegistry(host)
	switch {
	case err != nil || host == "":
		return c, errors.New("not a registry's name; want host, host:port or host/repository")
	case host == "registry-1.docker.io":
		return c, errors.New("images are named docker.io, so write docker.io: registry-1.docker.io is only the machine that serves them")
	}
	c.host, c.port = splitPort(registry.RegistryStr())
	return c, nil
}

func (c *credential) setPattern(host string) error {
	c.host, c.port = splitPort(host)
	c.isPattern = true
	if _, err := pattern.Match(c.host, ""); err != nil || strings.ContainsAny(c.host, `\ @`) {
		return errors.New("not a pattern of a host's name")
	}
	if !strings.Contains(strings.Trim(c.host, "*?."), ".") && !strings.ContainsFunc(c.host, func(r rune) bool { return r >= 'a' && r <= 'z' }) {
		return errors.New("a pattern stands for one label of a host's name, such as *.registry.example; this one names no registry")
	}
	return nil
}

// splitPort cuts a port off. An IPv6 address keeps its brackets.
func splitPort(host string) (string, string) {
	if i := strings.LastIndexByte(host, ':'); i > strings.LastIndexByte(host, ']') {
		return host[:i], host[i+1:]
	}
	return host, ""
}

// moreSpecific sorts entries: exact hosts first, then the longest paths, then the kubelet's order, which is reversed.
func moreSpecific(a, b credential) int {
	if a.isPattern != b.isPattern {
		if a.isPattern {
			return 1
		}
		return -1
	}
	if d := len(b.path) - len(a.path); d != 0 {
		return d
	}
	return strings.Compare(b.host, a.host)
}

// matchesHost follows the kubelet (kubernetes, URLsMatch): as many labels, each of which matches, and the same port.
func (c credential) matchesHost(host, port string) bool {
	if !c.isPattern {
		return c.host == host && c.port == port
	}
	patterns, labels := strings.Split(c.host, "."), strings.Split(host, ".")
	if c.port != port || len(patterns) != len(labels) {
		return false
	}
	for i, label := range patterns {
		if ok, err := pattern.Match(label, labels[i]); err != nil || !ok {
			return false
		}
	}
	return true
}

// find returns the entry for a repository; nil when there is none.
func (c *credentials) find(target authn.Resource) *credential {
	host, port := splitPort(target.RegistryStr())
	repository := strings.TrimPrefix(strings.TrimPrefix(target.String(), target.RegistryStr()), "/")
	var partial *credential
	for i := range c.entries {
		entry := &c.entries[i]
		if !entry.matchesHost(host, port) || !strings.HasPrefix(repository, entry.path) {
			continue
		}
		if rest := repository[len(entry.path):]; entry.path == "" || rest == "" || rest[0] == '/' {
			return entry
		}
		if partial == nil {
			partial = entry // the kubelet takes it too; a path of whole components comes first
		}
	}
	return partial
}

// Resolve gives the credentials of the most specific entry, and anonymous where neither an entry nor a store is for the registry.
func (c *credentials) Resolve(target authn.Resource) (authn.Authenticator, error) {
	entry := c.find(target)
	switch {
	case entry == nil && c.store == nil:
		return authn.Anonymous, nil
	case entry == nil:
		return helped{c.store, serverName(target.RegistryStr()), false}, nil
	case entry.helper != nil:
		server := entry.key
		if entry.isPattern || entry.path != "" {
			server = serverName(target.RegistryStr())
		}
		return helped{entry.helper, server, true}, nil
	default:
		return authn.FromConfig(entry.config), nil
	}
}

// serverName is what a helper is asked for. Docker Hub has a name of its own.
func serverName(registry string) string {
	if registry == name.DefaultRegistry {
		return authn.DefaultAuthKey
	}
	return registry
}
