package plugintest_test

import (
	"os"
	"strings"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	clientset "k8s.io/client-go/kubernetes"

	"github.com/keelson-project/keelson/nodeattestor/audit"
	"github.com/keelson-project/keelson/nodeattestor/evidence"
	"github.com/keelson-project/keelson/test/tpmtest"
)

const audience = "keelson"

// podOn makes a pod of a service account on a node, as the scheduler and a kubelet would.
func podOn(t testing.TB, account, node string) *corev1.Pod {
	t.Helper()
	api := must2(clientset.NewForConfig(kubernetes.RESTConfig()))(t)
	_, err := api.CoreV1().ServiceAccounts("default").Create(t.Context(), &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: account}}, metav1.CreateOptions{})
	if err != nil && !strings.Contains(err.Error(), "already exists") {
		t.Fatal(err)
	}
	return must2(api.CoreV1().Pods("default").Create(t.Context(), &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{GenerateName: account + "-"},
		Spec:       corev1.PodSpec{ServiceAccountName: account, NodeName: node, Containers: []corev1.Container{{Name: "agent", Image: "agent"}}},
	}, metav1.CreateOptions{}))(t)
}

// token is a projected token of the pod's service account, as the kubelet mounts it; without a
// pod it is bound to nothing.
func token(t testing.TB, account, forAudience string, pod *corev1.Pod) string {
	t.Helper()
	api := must2(clientset.NewForConfig(kubernetes.RESTConfig()))(t)
	req := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{Audiences: []string{forAudience}}}
	if pod != nil {
		req.Spec.BoundObjectRef = &authenticationv1.BoundObjectReference{Kind: "Pod", APIVersion: "v1", Name: pod.Name, UID: pod.UID}
	}
	return must2(api.CoreV1().ServiceAccounts("default").CreateToken(t.Context(), account, req, metav1.CreateOptions{}))(t).Status.Token
}

func TestThreat07_ATokenBindsTheNodeOfItsPod(t *testing.T) {
	ca := must2(tpmtest.NewCA())(t)
	m := newMachine(t, ca, "good")
	reference := m.capture(t, "good")
	node := newNode(t, "token-1")
	newNode(t, "token-2")
	agent := podOn(t, "spire-agent", "token-1")
	elsewhere := podOn(t, "spire-agent", "token-2")
	other := podOn(t, "app", "token-1")
	check(t, os.WriteFile(m.file("token"), []byte(token(t, "spire-agent", audience, agent)+"\n"), 0o600))
	m.serve(t, "token_path = \""+m.file("token")+"\"")
	binding := "kubernetes {\n kubeconfig = \"" + kubernetes.AdminKubeconfig() + "\"\n node_binding = \"%\"\n token_audience = \"" + audience +
		"\"\n token_service_accounts = [\"default/spire-agent\"]\n}\n"
	options := func(mode string) serverOptions {
		return serverOptions{ca: ca, reference: reference, kubernetes: strings.Replace(binding, "%", mode, 1), inventory: map[string][]string{"token-1": m.ekHex}}
	}
	s := newServer(t, options("token"))

	attrs, err := attest(t, m, s, nil)
	check(t, err)
	if !strings.Contains(strings.Join(attrs.SelectorValues, " "), "node:token-1") {
		t.Errorf("selectors %v do not name the token's node", attrs.SelectorValues)
	}
	before := nodeTrust(t, "token-1", trusted)
	if before.NodeUID != string(node.UID) {
		t.Errorf("nodeUID %s, want %s", before.NodeUID, node.UID)
	}

	cases := map[string]struct{ token, check string }{
		"none":                       {"", "payload.token"},
		"no token at all":            {"garbage", "token.invalid"},
		"for another audience":       {token(t, "spire-agent", "another", agent), "token.invalid"},
		"of another service account": {token(t, "app", audience, other), "token.account"},
		"bound to no pod":            {token(t, "spire-agent", audience, nil), "token.pod"},
	}
	for name, tc := range cases {
		t.Run("a token "+name, func(t *testing.T) {
			_, err := attest(t, m, s, inPayload(t, func(p *evidence.Payload) { p.Token = []byte(tc.token) }))
			refused(t, s, err, audit.Unproved, tc.check)
		})
	}
	t.Run("a pod on another node names that node, which is not the EK's", func(t *testing.T) {
		check(t, s.configure(t, options("both")))
		_, err := attest(t, m, s, inPayload(t, func(p *evidence.Payload) { p.Token = []byte(token(t, "spire-agent", audience, elsewhere)) }))
		refused(t, s, err, audit.Unproved, "node.token")
		noNodeTrust(t, "token-2")
		_, err = attest(t, m, s, nil)
		check(t, err)
	})
	t.Run("another machine with a token of the node does not take it over", func(t *testing.T) {
		check(t, s.configure(t, options("token")))
		stranger := newMachine(t, ca, "good")
		check(t, os.WriteFile(stranger.file("token"), []byte(token(t, "spire-agent", audience, agent)), 0o600))
		stranger.serve(t, "token_path = \""+stranger.file("token")+"\"")
		_, err := attest(t, stranger, s, nil)
		refused(t, s, err, audit.Unproved, "node.binding")
	})
	if after := nodeTrust(t, "token-1", trusted); after.EKHash != before.EKHash {
		t.Errorf("the node's NodeTrust is now %+v", after)
	}
	t.Run("a token of an earlier Node of that name", func(t *testing.T) {
		check(t, kube(t).Delete(t.Context(), node))
		time.Sleep(100 * time.Millisecond)
		newNode(t, "token-1")
		_, err := attest(t, m, s, nil)
		if err == nil {
			t.Fatal("accepted")
		}
		refused(t, s, err, audit.Unproved, "token.")
	})
}
