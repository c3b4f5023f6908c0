//! Hot files of real architectures: what ggml rearranges is rearranged, nothing else is touched, and
//! llama.cpp refuses the file.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use hypura_engine::gguf::hot::{HotLayout, HotModel, HotWriter};
use hypura_engine::gguf::{ByteRange, GgmlType, Model};
use hypura_engine::llama::{Layout, Repacker, plain};
use hypura_engine::{
    OptimizeError, OptimizeOptions, OptimizeStep, Optimized, optimize, suits_this_cpu,
};
use hypura_testkit::tiny::{Mix, find};

fn tiny(folder: &Path, recipe: &str, mix: Mix) -> PathBuf {
    let path = folder.join(format!("{recipe}.gguf"));
    find(recipe).unwrap().model(mix, 3).unwrap().write(&path).unwrap();
    path
}

fn options(threads: u32) -> OptimizeOptions {
    OptimizeOptions { threads: Some(threads), replace: true }
}

fn bytes_at(model: &Model, range: ByteRange) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(range.len).unwrap()];
    let file = File::open(&model.files[range.file].path).unwrap();
    file.read_exact_at(&mut bytes, range.offset).unwrap();
    bytes
}

/// Makes the hot file and compares each slice with what the source's becomes.
fn check(folder: &Path, source: &Path) -> (Optimized, HotModel) {
    let out = folder.join("hot.gguf");
    let done = optimize(source, &out, &options(2), &mut |_, _, _| true).unwrap();
    let model = Model::open(source).unwrap();
    let hot = HotModel::of(&Model::open(&out).unwrap()).unwrap();
    assert_eq!(done.file_bytes, out.metadata().unwrap().len());
    assert_eq!(hot.view.metadata, model.metadata);
    suits_this_cpu(&hot).unwrap();
    let mut repacker = Repacker::new().expect("this CPU has a layout of its own");
    for (index, (tensor, seen)) in model.tensors.iter().zip(&hot.view.tensors).enumerate() {
        assert_eq!((&tensor.name, tensor.dims), (&seen.name, seen.dims));
        let Some(place) = hot.place(index) else {
            assert_eq!(bytes_at(&hot.view, seen.range()), bytes_at(&model, tensor.range()));
            continue;
        };
        let (ty, [ne0, ne1, ..]) = (tensor.ty.id(), tensor.dims);
        let slices = u64::from(place.n_slices);
        let is_repacked = repacker.repacks(ty, ne0, ne1, slices, tensor.role.is_expert());
        assert_eq!(place.layout.is_repacked(), is_repacked, "{}", tensor.name);
        if let HotLayout::Repacked { fingerprint } = place.layout {
            assert_eq!(repacker.fingerprint(ty, ne0, ne1).unwrap(), fingerprint);
        }
        for slice in 0..place.n_slices {
            let range = tensor.expert_range(slice).unwrap_or(tensor.range());
            let mut expected = bytes_at(&model, range);
            if is_repacked {
                let plain = expected.clone();
                repacker.repack(ty, ne0, ne1, &plain, &mut expected).unwrap();
                assert_ne!(plain, expected, "{}", tensor.name);
            }
            let got = bytes_at(&hot.view, place.slice(slice).unwrap());
            assert!(got == expected, "{} {slice}", tensor.name);
        }
    }
    let refused =
        plain::load(&out, plain::Source::Mmap, Layout::Fast, plain::On::Cpu, &mut |_| true);
    let refused = refused.map(|_| ()).expect_err("llama.cpp can't know the layout").to_string();
    assert!(refused.contains("' not found"), "{refused}");
    (done, hot)
}

#[test]
fn experts_and_matrices_lie_as_this_cpu_wants_them() {
    let folder = tempfile::tempdir().unwrap();
    for (recipe, mix, has_repacked) in [
        ("qwen3moe", Mix::Q4_0, true),
        ("qwen3moe", Mix::Q4_K_M, true),
        ("gpt-oss", Mix::MXFP4, true),
        ("llama", Mix::Q4_0, true),
        ("llama", Mix::F16, false),
    ] {
        let source = tiny(folder.path(), recipe, mix);
        let (done, hot) = check(folder.path(), &source);
        let repacked = done.streamable.iter().filter(|((_, repacked), _)| *repacked).count();
        // Which types are rearranged is ggml's business, but Q4_0 and its like are on every CPU
        // that it has kernels for.
        let is_x86 = cfg!(target_arch = "x86_64");
        assert!(!is_x86 || (repacked > 0) == has_repacked, "{recipe}: {done:?}");
        assert!(!hot.groups().is_empty(), "{recipe}");
        assert_eq!(done.blocks, hot.groups().iter().map(|g| u64::from(g.blocks)).sum::<u64>());
        let tensors = done.streamable.values().map(|count| count.tensors).sum::<u64>();
        assert_eq!(tensors + done.others.tensors, hot.view.tensors.len() as u64);
    }
}

#[test]
fn the_number_of_threads_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let source = tiny(folder.path(), "qwen3moe", Mix::Q4_0);
    let bytes = [1, 3, 8].map(|threads| {
        let out = folder.path().join("hot.gguf");
        optimize(&source, &out, &options(threads), &mut |_, _, _| true).unwrap();
        std::fs::read(out).unwrap()
    });
    assert!(bytes[0] == bytes[1] && bytes[0] == bytes[2]);
}

#[test]
fn a_split_set_of_large_matrices_is_cut_and_joined() {
    let folder = tempfile::tempdir().unwrap();
    // The output matrix is larger than a chunk, and its rows no multiple of what a chunk has.
    let (ne0, ne1) = (4096_u64, 2440_u64);
    let metadata = [("general.architecture", "llama")].into_iter().collect();
    let mut writer = hypura_engine::gguf::Writer::new(metadata, 32).unwrap();
    writer.add_tensor("token_embd.weight", GgmlType::F32, &[64]).unwrap();
    writer.add_tensor("output.weight", GgmlType::Q4_0, &[ne0, ne1]).unwrap();
    let sizes: Vec<u64> = writer.tensors().iter().map(|info| info.bytes).collect();
    assert!(sizes[1] > 5 << 20);
    let prefix = folder.path().join("large");
    let paths = hypura_engine::gguf::write_split(&writer, &prefix, &[1, 1], |index, sink| {
        let bytes: Vec<u8> = (0..sizes[index]).map(|i| (i * i % 61).to_le_bytes()[0]).collect();
        sink.write_all(&bytes)
    });
    let source = &paths.unwrap()[0];
    let out = folder.path().join("hot.gguf");
    optimize(source, &out, &options(2), &mut |_, _, _| true).unwrap();
    let (model, hot) = (Model::open(source).unwrap(), Model::open(&out).unwrap());
    let hot = HotModel::of(&hot).unwrap();
    let place = hot.place(1).unwrap();
    let plain = bytes_at(&model, model.tensors[1].range());
    let mut expected = plain.clone();
    let mut repacker = Repacker::new().unwrap();
    let ty = GgmlType::Q4_0.id();
    if repacker.repacks(ty, ne0, ne1, 1, false) {
        assert!(repacker.rows_at_a_time(ty, ne0, ne1, 4 << 20) < ne1);
        repacker.repack(ty, ne0, ne1, &plain, &mut expected).unwrap();
    }
    assert!(bytes_at(&hot.view, place.slice(0).unwrap()) == expected);
}

#[test]
fn files_of_another_cpu_are_recognised() {
    let folder = tempfile::tempdir().unwrap();
    let model = Model::open(&tiny(folder.path(), "qwen3moe", Mix::Q4_0)).unwrap();
    let out = folder.path().join("hot.gguf");
    let foreign = HotLayout::Repacked { fingerprint: [7; 32] };
    let writer = HotWriter::new(&model, |_, _| foreign).unwrap();
    let sizes: Vec<u64> = writer.pieces().iter().map(|piece| piece.source.len).collect();
    let written = writer.write(&out, &model, false, |piece, sink| {
        sink.write_all(&vec![0; usize::try_from(sizes[piece]).unwrap()])
    });
    written.unwrap().publish().unwrap();
    let hot = HotModel::of(&Model::open(&out).unwrap()).unwrap();
    let refused = suits_this_cpu(&hot).unwrap_err().to_string();
    assert!(refused.contains("another kind of CPU") && refused.contains(".weight"), "{refused}");
}

#[test]
fn a_source_that_changes_meanwhile_is_noticed() {
    let folder = tempfile::tempdir().unwrap();
    let source = tiny(folder.path(), "qwen3moe", Mix::Q4_0);
    let out = folder.path().join("hot.gguf");
    let changed = optimize(&source, &out, &options(1), &mut |_, _, _| {
        let file = File::options().append(true).open(&source).unwrap();
        file.write_all_at(b"x", file.metadata().unwrap().len()).unwrap();
        true
    });
    assert!(matches!(changed, Err(OptimizeError::Changed(_))), "{changed:?}");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn stopping_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let source = tiny(folder.path(), "qwen3moe", Mix::Q4_0);
    let out = folder.path().join("hot.gguf");
    for step in [OptimizeStep::Write, OptimizeStep::Verify] {
        let mut seen = 0;
        let stopped = optimize(&source, &out, &options(2), &mut |now, done, total| {
            assert!(done <= total);
            seen += u32::from(now == step);
            seen < 2
        });
        assert!(matches!(stopped, Err(OptimizeError::Stopped)), "{step:?}: {stopped:?}");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
