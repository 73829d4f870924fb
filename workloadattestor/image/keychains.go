package image

import (
	"context"
	"errors"

	"github.com/google/go-containerregistry/pkg/authn"
)

// Keychains combines keychains: the first one that has credentials for a repository gives them. Nil ones are left out; it returns nil
// if there is no other.
func Keychains(list ...authn.Keychain) authn.Keychain {
	var out keychains
	for _, k := range list {
		if k != nil {
			out = append(out, k)
		}
	}
	switch len(out) {
	case 0:
		return nil
	case 1:
		return out[0]
	default:
		return out
	}
}

type keychains []authn.Keychain

// Resolve returns an authenticator that asks the keychains in order, each time it is used.
func (k keychains) Resolve(target authn.Resource) (authn.Authenticator, error) {
	var out inOrder
	for _, keychain := range k {
		a, err := keychain.Resolve(target)
		if err != nil {
			return nil, err
		}
		if a != authn.Anonymous {
			out = append(out, a)
		}
	}
	switch len(out) {
	case 0:
		return authn.Anonymous, nil
	case 1:
		return out[0], nil
	default:
		return out, nil
	}
}

// version changes when one of the keychains' credentials do: each one's number only grows.
func (k keychains) version() uint64 {
	var sum uint64
	for _, keychain := range k {
		if v, ok := keychain.(versioned); ok {
			sum += v.version()
		}
	}
	return sum
}

// inOrder are authenticators of which the first that has credentials counts. An error of one is an error only if no later one has
// any.
type inOrder []authn.Authenticator

// Authorization implements authn.Authenticator.
func (o inOrder) Authorization() (*authn.AuthConfig, error) {
	return o.AuthorizationContext(context.Background())
}

// AuthorizationContext implements authn.ContextAuthenticator.
func (o inOrder) AuthorizationContext(ctx context.Context) (*authn.AuthConfig, error) {
	var problems []error
	for _, a := range o {
		config, err := authn.Authorization(ctx, a)
		if err != nil {
			problems = append(problems, err)
			continue
		}
		if *config != (authn.AuthConfig{}) {
			return config, nil
		}
	}
	if err := errors.Join(problems...); err != nil {
		return nil, err
	}
	return &authn.AuthConfig{}, nil
}
