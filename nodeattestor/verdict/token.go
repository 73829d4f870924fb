package verdict

import (
	"context"
	"fmt"
	"slices"
	"strings"

	authenticationv1 "k8s.io/api/authentication/v1"

	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
)

// TokenPolicy says which projected service-account tokens bind a node.
type TokenPolicy struct {
	Audience        string   // that the token must have been issued for
	ServiceAccounts []string // "namespace/name" of the accounts that SPIRE agents run as
}

// Extra keys of a reviewed token (Kubernetes: bound service account tokens, KEP-4193).
const (
	extraPod     = "authentication.kubernetes.io/pod-name"
	extraPodUID  = "authentication.kubernetes.io/pod-uid"
	extraNode    = "authentication.kubernetes.io/node-name"
	extraNodeUID = "authentication.kubernetes.io/node-uid"
)

// ReviewToken has the Kubernetes API review a token, which the agent controls, and returns the node
// that it is bound to. The token must be valid for the audience, belong to a listed service
// account, and be bound to a pod on a Node that still has the UID in the token: a token of an
// earlier Node of the same name binds nothing. Tokens that are not so are refused
// (*nodeclaim.Refusal, check "token.…"); an API that cannot answer, or not within readTimeout, is another error.
func (s *Store) ReviewToken(ctx context.Context, token []byte, policy TokenPolicy) (node string, err error) {
	ctx, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	review := &authenticationv1.TokenReview{Spec: authenticationv1.TokenReviewSpec{
		Token: string(token), Audiences: []string{policy.Audience}}}
	if err := s.client.Create(ctx, review); err != nil {
		return "", fmt.Errorf("verdict: review the service-account token: %w", err)
	}
	st := review.Status
	if !st.Authenticated {
		return "", nodeclaim.Refuse("token.invalid", fmt.Sprintf("the Kubernetes API does not accept the service-account token for audience %q: %.200s", policy.Audience, st.Error))
	}
	if !slices.Contains(st.Audiences, policy.Audience) {
		return "", nodeclaim.Refuse("token.audience", fmt.Sprintf("the token was not reviewed for audience %q", policy.Audience))
	}
	if !slices.ContainsFunc(policy.ServiceAccounts, func(sa string) bool { return st.User.Username == serviceAccountUser(sa) }) {
		return "", nodeclaim.Refuse("token.account", fmt.Sprintf("the token belongs to %.200s, which is no service account of a SPIRE agent here", st.User.Username))
	}
	extra := func(key string) string {
		if v := st.User.Extra[key]; len(v) == 1 {
			return v[0]
		}
		return ""
	}
	if extra(extraPod) == "" || extra(extraPodUID) == "" {
		return "", nodeclaim.Refuse("token.pod", "the token is not bound to a pod; mount a projected token, not a secret")
	}
	name, uid := extra(extraNode), extra(extraNodeUID)
	if name == "" || uid == "" {
		return "", nodeclaim.Refuse("token.node", "the token names no node and its UID; Kubernetes 1.32 or later puts both into projected tokens")
	}
	now, err := s.nodeUID(ctx, name)
	if err != nil {
		return "", err
	}
	if now != uid {
		return "", nodeclaim.Refuse("token.node", fmt.Sprintf("the token is for an earlier Node %s (UID %s, now %q)", name, uid, now))
	}
	return name, nil
}

// serviceAccountUser is the user name of "namespace/name".
func serviceAccountUser(account string) string {
	return "system:serviceaccount:" + strings.Replace(account, "/", ":", 1)
}
