package fleet

import "context"

// The accounts that Calico's programs on nodes have: Felix and the CNI plugin.
const (
	CalicoNode = "system:serviceaccount:calico-system:calico-node"
	calicoCNI  = "system:serviceaccount:calico-system:calico-cni-plugin"
)

// calicoRoles are their rights, as Calico's own manifests give them for the datastore "kubernetes" (calico v3.30,
// charts/calico/templates/calico-node-rbac.yaml), without those for BGP and for upgrades.
const calicoRoles = `
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: calico-node}
rules:
- {apiGroups: [""], resources: [pods, nodes, namespaces, services, endpoints, serviceaccounts], verbs: [get, list, watch]}
- {apiGroups: [""], resources: [configmaps], verbs: [get]}
- {apiGroups: [""], resources: [nodes/status], verbs: [patch, update]}
- {apiGroups: [""], resources: [pods/status], verbs: [patch]}
- {apiGroups: [discovery.k8s.io], resources: [endpointslices], verbs: [list, watch]}
- {apiGroups: [networking.k8s.io], resources: [networkpolicies], verbs: [list, watch]}
- {apiGroups: [policy.networking.k8s.io], resources: [adminnetworkpolicies, baselineadminnetworkpolicies], verbs: [list, watch]}
- apiGroups: [crd.projectcalico.org]
  resources: [globalfelixconfigs, felixconfigurations, bgppeers, bgpfilters, globalbgpconfigs, bgpconfigurations, ippools, ipreservations, ipamblocks,
    globalnetworkpolicies, stagedglobalnetworkpolicies, networkpolicies, stagednetworkpolicies, stagedkubernetesnetworkpolicies,
    globalnetworksets, networksets, clusterinformations, hostendpoints, blockaffinities, caliconodestatuses, tiers]
  verbs: [get, list, watch]
- {apiGroups: [crd.projectcalico.org], resources: [tiers], verbs: [create]}
- {apiGroups: [crd.projectcalico.org], resources: [ippools, felixconfigurations, clusterinformations], verbs: [create, update]}
- {apiGroups: [crd.projectcalico.org], resources: [caliconodestatuses], verbs: [update]}
- {apiGroups: [crd.projectcalico.org], resources: [blockaffinities, ipamblocks, ipamhandles], verbs: [get, list, create, update, delete]}
- {apiGroups: [crd.projectcalico.org], resources: [ipamconfigs], verbs: [get, create]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: calico-cni-plugin}
rules:
- {apiGroups: [""], resources: [pods, nodes, namespaces], verbs: [get]}
- {apiGroups: [""], resources: [pods/status], verbs: [patch]}
- apiGroups: [crd.projectcalico.org]
  resources: [blockaffinities, ipamblocks, ipamhandles, clusterinformations, ippools, ipreservations, ipamconfigs]
  verbs: [get, list, create, update, delete]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: calico-node}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: calico-node}
subjects: [{kind: User, name: "` + CalicoNode + `"}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: calico-cni-plugin}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: calico-cni-plugin}
subjects: [{kind: User, name: "` + calicoCNI + `"}]
`

func (f *Fleet) installCalico(ctx context.Context) (err error) {
	if err := f.Cluster.Apply(ctx, []byte(calicoRoles)); err != nil {
		return err
	}
	if f.calicoKubeconfig, err = f.kubeconfig(CalicoNode, "system:serviceaccounts", "system:serviceaccounts:calico-system"); err != nil {
		return err
	}
	f.cniKubeconfig, err = f.kubeconfig(calicoCNI, "system:serviceaccounts", "system:serviceaccounts:calico-system")
	return err
}
