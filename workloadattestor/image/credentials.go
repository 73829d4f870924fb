package image

import (
	"encoding/base64"
	"errors"
	"fmt"
	"strings"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
)

// maxCredentials bounds a credentials file.
const maxCredentials = 1 << 20

// credentials are user names and passwords by registry host.
type credentials map[string]authn.AuthConfig

// ParseCredentials reads registry credentials in the form of ~/.docker/config.json and of Kubernetes' secret type
// kubernetes.io/dockerconfigjson: {"auths": {"registry.example": {"auth": base64 of "user:password"}}}. Helpers, which
// would run programs, are not supported. Errors hold no secret.
func ParseCredentials(raw []byte) (authn.Keychain, error) {
	if len(raw) > maxCredentials {
		return nil, fmt.Errorf("image: credentials of %d bytes, the limit is %d", len(raw), maxCredentials)
	}
	var file struct {
		Auths map[string]struct {
			Auth     string `json:"auth"`
			Username string `json:"username"`
			Password string `json:"password"`
		} `json:"auths"`
	}
	if _, err := decodeStrict(raw, &file); err != nil {
		return nil, errors.New("image: credentials are not JSON of the form {\"auths\": {…}}, or a key is given twice")
	}
	out := credentials{}
	for key, entry := range file.Auths {
		host, err := credentialHost(key)
		if err != nil {
			return nil, err
		}
		if entry.Auth == "" {
			out[host] = authn.AuthConfig{Username: entry.Username, Password: entry.Password}
			continue
		}
		plain, err := base64.StdEncoding.DecodeString(entry.Auth)
		user, password, ok := strings.Cut(string(plain), ":")
		if err != nil || !ok {
			return nil, fmt.Errorf("image: credentials for %s: auth is not base64 of \"user:password\"", host)
		}
		out[host] = authn.AuthConfig{Username: user, Password: password}
	}
	if len(out) == 0 {
		return nil, errors.New("image: credentials for no registry: want {\"auths\": {\"registry.example\": {\"auth\": …}}}")
	}
	return out, nil
}

// credentialHost takes the registry's name out of a key, which `docker login` may have written as a URL.
func credentialHost(key string) (string, error) {
	host := strings.TrimPrefix(strings.TrimPrefix(key, "https://"), "http://")
	host, _, _ = strings.Cut(host, "/")
	registry, err := name.NewRegistry(host)
	if err != nil || host == "" {
		return "", fmt.Errorf("image: credentials for %s: not a registry's name", short(key))
	}
	return registry.RegistryStr(), nil
}

// Resolve gives the credentials for exactly the registry that is asked, none for any other.
func (c credentials) Resolve(target authn.Resource) (authn.Authenticator, error) {
	if config, ok := c[target.RegistryStr()]; ok {
		return authn.FromConfig(config), nil
	}
	return authn.Anonymous, nil
}
