package serverconfig

import (
	"regexp"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/keelson-project/keelson/nodeattestor/verdict"
	"github.com/keelson-project/keelson/nodeattestor/verify"
)

func (b *builder) kubernetes(raw *hclKubernetes) *rest.Config {
	if raw == nil {
		return nil
	}
	if raw.InCluster == (raw.Kubeconfig != "") {
		b.problems.Add("kubernetes", "say either in_cluster = true or kubeconfig = \"…\"")
		return nil
	}
	var cfg *rest.Config
	var err error
	if raw.InCluster {
		cfg, err = rest.InClusterConfig()
	} else {
		cfg, err = clientcmd.BuildConfigFromFlags("", raw.Kubeconfig)
	}
	if err != nil {
		b.problems.Add("kubernetes", "%v", err)
		return nil
	}
	cfg.UserAgent = "keelson-nodeattestor-server"
	cfg.QPS = -1 // client-go would hold attestations back to 5 requests a second; the gate and the API's own fairness bound them
	return cfg
}

// account is a service account as "namespace/name", both DNS-1123.
var account = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?/[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$`)

// nodeBinding reads what names the node of an EK. Tokens bind only for listed accounts and
// one audience: whoever may run a pod could else claim its node.
func (b *builder) nodeBinding(raw *hclKubernetes, c *Config) {
	if raw == nil {
		return
	}
	if raw.NodeBinding != "" {
		mode, err := verify.ParseBinding(raw.NodeBinding)
		if err != nil {
			b.problems.Add("kubernetes.node_binding", "%v", err)
		}
		c.Policy.Binding = mode
	}
	c.Token = verdict.TokenPolicy{Audience: raw.TokenAudience, ServiceAccounts: raw.ServiceAccounts}
	if !c.Policy.Binding.UsesToken() {
		if raw.TokenAudience != "" || len(raw.ServiceAccounts) > 0 {
			b.problems.Add("kubernetes.node_binding", "is %s, which uses no token; say token or both, or remove the token's keys", c.Policy.Binding)
		}
		return
	}
	if raw.TokenAudience == "" {
		b.problems.Add("kubernetes.token_audience", "missing; name the audience that the agents' projected tokens are issued for")
	}
	if len(raw.ServiceAccounts) == 0 {
		b.problems.Add("kubernetes.token_service_accounts", "missing; list the agents' service accounts as \"namespace/name\"")
	}
	for _, sa := range raw.ServiceAccounts {
		if !account.MatchString(sa) {
			b.problems.Add("kubernetes.token_service_accounts", "%q is not of the form \"namespace/name\"", sa)
		}
	}
}
