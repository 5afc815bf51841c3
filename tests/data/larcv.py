"""Writes larcv.root, which is beside it, with ROOT: the trees of LArCV 2, from classes with its names and members.

ROOT keeps a checksum of every class in the file; those here are the checksums of files that LArCV wrote itself, which
`tests/test_larcv.py` holds them to. To make the file anew, `pip install --pre root` and run this in an empty folder.
"""

from __future__ import annotations

from pathlib import Path

import ROOT

CLASSES = """
#include <string>
#include <vector>
namespace larcv {
enum DistanceUnit_t { kUnitUnknown, kUnitCM, kUnitWireTime };
struct EventBase { virtual ~EventBase() {} std::string _producer; size_t _run = 0, _subrun = 0, _event = 0; };
struct Point3D { double x = 0, y = 0, z = 0; };
struct BBox3D { virtual ~BBox3D() {} Point3D _p1, _p2; };
struct Voxel3DMeta : BBox3D {
  bool _valid = false;
  size_t _num_element = 0;
  double _xlen = -1, _ylen = -1, _zlen = -1;
  size_t _xnum = 0, _ynum = 0, _znum = 0;
  DistanceUnit_t _unit = kUnitUnknown;
};
struct Voxel { unsigned long long _id = 0; float _value = 0; };
struct VoxelSet { virtual ~VoxelSet() {} unsigned short _id = 0; std::vector<larcv::Voxel> _voxel_v; };
struct VoxelSetArray { virtual ~VoxelSetArray() {} std::vector<larcv::VoxelSet> _voxel_vv; };
struct SparseTensor3D : VoxelSet { larcv::Voxel3DMeta _meta; };
struct ClusterVoxel3D : VoxelSetArray { larcv::Voxel3DMeta _meta; };
struct EventSparseTensor3D : EventBase, SparseTensor3D {};
struct EventClusterVoxel3D : EventBase, ClusterVoxel3D {};
}
#ifdef __ROOTCLING__
#pragma link C++ class larcv::EventBase+;
#pragma link C++ class larcv::Point3D+;
#pragma link C++ class larcv::BBox3D+;
#pragma link C++ class larcv::Voxel3DMeta+;
#pragma link C++ class larcv::Voxel+;
#pragma link C++ class std::vector<larcv::Voxel>+;
#pragma link C++ class larcv::VoxelSet+;
#pragma link C++ class std::vector<larcv::VoxelSet>+;
#pragma link C++ class larcv::VoxelSetArray+;
#pragma link C++ class larcv::SparseTensor3D+;
#pragma link C++ class larcv::ClusterVoxel3D+;
#pragma link C++ class larcv::EventSparseTensor3D+;
#pragma link C++ class larcv::EventClusterVoxel3D+;
#endif
"""

FILL = """
void add(larcv::VoxelSet& set, int id, double value) {
  set._voxel_v.emplace_back();
  set._voxel_v.back()._id = id, set._voxel_v.back()._value = value;
}
void fill(const char* path) {
  TFile file(path, "RECREATE");
  auto* tensor = new larcv::EventSparseTensor3D;
  auto* clusters = new larcv::EventClusterVoxel3D;
  // LArCV makes a branch of a pointer with ROOT's default, a split level of 99; the second one is for an error.
  auto* split = new TTree("sparse3d_pcluster_tree", "pcluster tree");
  split->Branch("sparse3d_pcluster_branch", &tensor);
  auto* whole = new TTree("sparse3d_whole_tree", "whole tree");
  whole->Branch("sparse3d_whole_branch", &tensor, 32000, 0);
  auto* sets = new TTree("cluster3d_pcluster_tree", "pcluster tree");
  sets->Branch("cluster3d_pcluster_branch", &clusters);
  // A grid of 10 x 6 x 4 voxels of 2 x 5 x 1 cm, an event without voxels or grid, and the same grid elsewhere.
  for (int n = 0; n < 3; n++) {
    *tensor = {};
    *clusters = {};
    tensor->_producer = "pcluster";
    tensor->_run = 4, tensor->_subrun = 1, tensor->_event = 10 + n;
    if (n != 1) {
      auto& grid = tensor->_meta;
      grid._p1 = {n - 10., -20, 8}, grid._p2 = {n + 10., 10, 12};
      grid._xnum = 10, grid._ynum = 6, grid._znum = 4;
      grid._xlen = 2, grid._ylen = 5, grid._zlen = 1;
      grid._num_element = 240, grid._valid = true, grid._unit = larcv::kUnitCM;
      for (auto [id, value] : {std::pair{0, 0.5}, {9, 1.25}, {10, 2.}, {59, 4.}, {60, 8.}, {239, 0.25}}) {
        add(*tensor, id, value);
      }
    }
    // Two clusters that share a voxel, no cluster, and two with one between them that has no voxel.
    static_cast<larcv::EventBase&>(*clusters) = *tensor;
    clusters->_meta = tensor->_meta;
    if (n != 1) {
      clusters->_voxel_vv.push_back(*tensor);
      if (n == 2) clusters->_voxel_vv.emplace_back();
      clusters->_voxel_vv.emplace_back();
      add(clusters->_voxel_vv.back(), 9, 1);
      add(clusters->_voxel_vv.back(), 100, 3);
    }
    for (auto* tree : {split, whole, sets}) tree->Fill();
  }
  file.Write();
}
"""

if __name__ == "__main__":
    Path("larcv.h").write_text(CLASSES)
    ROOT.gROOT.ProcessLine(".L larcv.h+")
    ROOT.gInterpreter.Declare(FILL)
    ROOT.fill("larcv.root")  # no path: ROOT keeps it in the file
